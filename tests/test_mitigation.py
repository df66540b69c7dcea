"""Mitigations on disk and on a pipeline: applied exactly, taken back exactly, refused where they do not belong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import tiny_pipeline
from torch import Tensor

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError
from diffkit.lab.assets import model_path
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import (
    CARD,
    WEIGHTS,
    Mitigation,
    apply_mitigation,
    card_checksum,
    load_mitigation,
    save_mitigation,
)
from diffkit.mitigation.packed_mask import mask_tensor
from diffkit.suspects import Suspect
from memorization import DetectSettings, detect, mitigate
from memorization.auditing.models import AuditedModel

TO_V = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
FF = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2"


def mask(**changes: Any) -> Mitigation:
    tensors = {
        f"a/{TO_V}.rows": torch.tensor([1, 5], dtype=torch.int32),
        f"b/{TO_V}.rows": torch.tensor([5, 7], dtype=torch.int32),
        f"{FF}.rows": torch.tensor([2], dtype=torch.int32),
        f"b/{FF}.weights": torch.tensor([0, 130], dtype=torch.int32),
    }
    known: dict[str, Any] = {"method": "test", "kind": "mask", "model": "tiny", "suspects": ("b", "a")}
    return Mitigation(**(known | {"tensors": tensors} | changes))


def weights(pipe: Any) -> dict[str, Tensor]:
    return {f"unet.{k}": v.clone() for k, v in pipe.unet.state_dict().items()}


def same(pipe: Any, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in weights(pipe).items())


def test_the_union_of_a_mask_zeroes_rows_bias_and_single_weights_and_nothing_else() -> None:
    pipe = tiny_pipeline()
    before = weights(pipe)
    expected = {name: value.clone() for name, value in before.items()}
    expected[f"{TO_V}.weight"][[1, 5, 7]] = 0
    expected[f"{FF}.weight"][2] = 0
    expected[f"{FF}.bias"][2] = 0
    expected[f"{FF}.weight"].view(-1)[[0, 130]] = 0
    with apply_mitigation(pipe, mask()) as applied:
        assert same(pipe, expected)
        assert not same(pipe, before)
    assert same(pipe, before)
    applied.undo()  # twice does no harm
    assert same(pipe, before)


def test_a_packed_mask_zeroes_the_same_weights_as_a_list_of_indices(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    before = weights(pipe)
    off = {
        name: torch.rand(value.shape, generator=torch.Generator().manual_seed(1)) < share
        for name, share in (("unet.conv_in", 0.6), (FF, 0.01))
        for value in (before[f"{name}.weight"],)
    }
    tensors = {key: value for name, chosen in off.items() for key, value in mask_tensor(name, chosen).items()}
    assert set(tensors) == {"unet.conv_in.bits", f"{FF}.weights"}  # the smaller form of each
    save_mitigation(tmp_path, mask(tensors=tensors))
    with apply_mitigation(pipe, load_mitigation(tmp_path)):
        expected = {name: value.clone() for name, value in before.items()}
        for name, chosen in off.items():
            expected[f"{name}.weight"][chosen] = 0
        assert same(pipe, expected)
    assert same(pipe, before)
    with pytest.raises(InputError, match="72 bytes"):
        apply_mitigation(pipe, mask(tensors={"unet.conv_in.bits": torch.zeros(73, dtype=torch.uint8)}))
    assert same(pipe, before)


def test_only_one_suspects_part_is_applied_beside_what_belongs_to_all() -> None:
    pipe = tiny_pipeline()
    assert mask().parts() == ["b", "a"]
    with apply_mitigation(pipe, mask(), only="a"):
        rows = pipe.unet.mid_block.attentions[0].transformer_blocks[0]
        assert set(torch.where((rows.attn2.to_v.weight == 0).all(1))[0].tolist()) == {1, 5}
        assert torch.where((rows.ff.net[2].weight == 0).all(1))[0].tolist() == [2]
        assert int((rows.ff.net[2].weight == 0).sum()) == rows.ff.net[2].weight.shape[1]
    with pytest.raises(InputError, match="nothing for 'c' alone"):
        apply_mitigation(pipe, mask(), only="c")


def test_zeroed_rows_are_what_a_hook_that_multiplies_outputs_by_zero_gives() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a dog"], guidance=False).prompt_embeds
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    handle = layer.register_forward_hook(lambda m, i, o: o.index_fill(-1, torch.tensor([1, 5]), 0.0))
    hooked = predict_noise(pipe, latents, torch.tensor(500), embeds)
    handle.remove()
    with apply_mitigation(pipe, mask(tensors={f"{TO_V}.rows": torch.tensor([1, 5], dtype=torch.int32)})):
        zeroed = predict_noise(pipe, latents, torch.tensor(500), embeds)
    torch.testing.assert_close(zeroed, hooked)


def test_a_delta_in_half_precision_is_added_and_taken_back_to_the_last_bit() -> None:
    pipe = tiny_pipeline()
    before = weights(pipe)
    delta = torch.full_like(before[f"{FF}.weight"], 0.125).half()
    with apply_mitigation(pipe, mask(kind="delta", tensors={f"{FF}.weight": delta})):
        torch.testing.assert_close(weights(pipe)[f"{FF}.weight"], before[f"{FF}.weight"] + 0.125)
    assert same(pipe, before)


def test_a_lora_is_loaded_and_taken_back() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a dog"], guidance=False).prompt_embeds
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    donor = tiny_pipeline()
    donor.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_v"], init_lora_weights=False))
    state = {f"unet.{k}": v for k, v in get_peft_model_state_dict(donor.unet).items()}
    before = predict_noise(pipe, latents, torch.tensor(500), embeds)
    with apply_mitigation(pipe, mask(kind="lora", tensors=state)):
        inside = predict_noise(pipe, latents, torch.tensor(500), embeds)
        torch.testing.assert_close(inside, predict_noise(donor, latents, torch.tensor(500), embeds))
    after = predict_noise(pipe, latents, torch.tensor(500), embeds)
    assert torch.equal(after, before)
    assert not torch.allclose(inside, before)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    made = mask(settings={"theta": 5.0}, figures={"neurons": 3, "similarity": None}, model_sha256="ab")
    read = load_mitigation(save_mitigation(tmp_path / "m", made))
    assert read.card() == made.card()
    assert set(read.tensors) == set(made.tensors)
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in made.tensors.items())
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [CARD, WEIGHTS]


def spoil(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | changes))


def test_a_damaged_or_newer_folder_is_refused(tmp_path: Path) -> None:
    folder = save_mitigation(tmp_path / "m", mask())
    spoil(folder, schema_version=99)
    with pytest.raises(InputError, match="newer diffkit"):
        load_mitigation(folder)
    spoil(folder, schema_version=1, weights_sha256="0" * 64)
    with pytest.raises(InputError, match="not the file its card describes"):
        load_mitigation(folder)
    (folder / CARD).write_text("{")
    with pytest.raises(InputError, match="is no JSON"):
        load_mitigation(folder)
    (folder / CARD).write_text("[]")
    with pytest.raises(InputError, match="not the card"):
        load_mitigation(folder)
    with pytest.raises(InputError, match="holds no mitigation"):
        load_mitigation(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": {"unet.nowhere.rows": torch.tensor([0], dtype=torch.int32)}}, "does not have"),
        ({"tensors": {"nothing.at.rows": torch.tensor([0], dtype=torch.int32)}}, "does not have"),
        ({"tensors": {f"{TO_V}.rows": torch.tensor([999], dtype=torch.int32)}}, "another model"),
        ({"tensors": {f"{TO_V}.rows": torch.tensor([-1], dtype=torch.int32)}}, "another model"),
        ({"tensors": {f"{TO_V}.rows": torch.tensor([0.5])}}, "neither"),
        ({"tensors": {f"{TO_V}.columns": torch.tensor([0], dtype=torch.int32)}}, "neither"),
        ({"kind": "delta", "tensors": {f"{FF}.weight": torch.zeros(3)}}, "another model"),
        ({"kind": "delta", "tensors": {f"{FF}.nothing": torch.zeros(3)}}, "does not have"),
        ({"kind": "magic"}, "Unknown kind of mitigation"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(changes: dict[str, Any], message: str) -> None:
    pipe = tiny_pipeline()
    before = weights(pipe)
    with pytest.raises(InputError, match=message):
        apply_mitigation(pipe, mask(**changes))
    assert same(pipe, before)


def test_loading_with_a_mitigation_checks_the_model_and_applies_it(tmp_path: Path) -> None:
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    made = Mitigation(
        method="test",
        kind="mask",
        model="lab",
        model_sha256=model_checksum("lab"),
        tensors={f"{name}.rows": torch.tensor([3], dtype=torch.int32)},
    )
    folder = save_mitigation(tmp_path / "m", made)
    pipe = load_pipeline("lab", mitigation=folder)
    row = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.weight[3]
    assert not row.any()
    assert load_pipeline(model_path("lab"), mitigation=folder) is not None  # the same model by another name
    with pytest.raises(InputError, match="made for 'lab'"):
        load_pipeline("lab-clean", mitigation=folder)


def test_rows_may_leave_their_ordinary_value_behind_the_attention() -> None:
    """The published way is a hook; here the constant goes through ``to_out`` into its bias, and gives the same."""
    pipe = tiny_pipeline()
    before = weights(pipe)
    embeds = encode_prompts(pipe, ["a dog"], guidance=False).prompt_embeds
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    values = torch.randn(len(layer.weight), generator=torch.Generator().manual_seed(1))
    rows = torch.tensor([1, 5])

    def pin(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[..., rows] = values[rows]
        return output

    handle = layer.register_forward_hook(pin)
    hooked = predict_noise(pipe, latents, torch.tensor(500), embeds)
    handle.remove()
    tensors = {f"a/{TO_V}.rows": torch.tensor([1], dtype=torch.int32), f"b/{TO_V}.rows": rows.int()}
    with apply_mitigation(pipe, mask(tensors=tensors | {f"{TO_V}.outputs": values})):
        filled = predict_noise(pipe, latents, torch.tensor(500), embeds)
        with apply_mitigation(pipe, mask(tensors=tensors | {f"{TO_V}.outputs": values})):
            again = predict_noise(pipe, latents, torch.tensor(500), embeds)
    assert torch.equal(again, filled)
    torch.testing.assert_close(filled, hooked, rtol=1e-4, atol=1e-5)
    assert same(pipe, before)
    with pytest.raises(InputError, match="two masks"):
        tensors |= {f"{TO_V}.outputs": values, f"{TO_V.removesuffix('to_v')}to_out.0.rows": rows.int()}
        apply_mitigation(pipe, mask(tensors=tensors))
    with pytest.raises(InputError, match="expected"):
        apply_mitigation(pipe, mask(tensors={f"{TO_V}.rows": rows.int(), f"{TO_V}.outputs": values[:3]}))


def test_weights_may_leave_the_ordinary_input_behind() -> None:
    pipe = tiny_pipeline()
    before = weights(pipe)
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    columns = layer.weight.shape[1]
    ordinary = torch.randn(columns, generator=torch.Generator().manual_seed(1))
    flat = torch.tensor([0, 3, columns + 3], dtype=torch.int32)  # (0, 0), (0, 3), (1, 3)
    x = torch.randn(2, columns, generator=torch.Generator().manual_seed(2))
    expected = layer(x).detach().clone()
    w = before[f"{FF}.weight"]
    expected[:, 0] += w[0, 0] * (ordinary[0] - x[:, 0]) + w[0, 3] * (ordinary[3] - x[:, 3])
    expected[:, 1] += w[1, 3] * (ordinary[3] - x[:, 3])
    with apply_mitigation(pipe, mask(tensors={f"a/{FF}.weights": flat, f"{FF}.inputs": ordinary})):
        torch.testing.assert_close(layer(x), expected)
        ordinary_input = ordinary[None]
        unchanged = ordinary_input @ w.T + before[f"{FF}.bias"]
        torch.testing.assert_close(layer(ordinary_input), unchanged)  # an ordinary input notices nothing
    assert same(pipe, before)
    no_bias = TO_V.replace("to_v", "to_q")
    with pytest.raises(InputError, match="fill=zero"):
        apply_mitigation(pipe, mask(tensors={f"{no_bias}.rows": flat[:1], f"{no_bias}.outputs": torch.ones(32)}))


def test_guards_are_told_apart_by_their_settings() -> None:
    cards = [Mitigation("guard", "attention-guard", "lab", {}, settings={"factor": factor}).card() for factor in (1, 2)]
    empty = {"weights_sha256": "0"}
    assert card_checksum(cards[0] | empty) != card_checksum(cards[1] | empty)
    assert card_checksum(mask().card() | empty) == "0"


def test_the_mitigations_of_a_pipeline_are_recorded_while_they_are_on(tmp_path: Path) -> None:
    """Those it was loaded with and those applied later, in memory or from a folder, alone or together."""

    def recorded() -> Any:
        return AuditedModel.of(pipe).mitigation

    pipe = load_pipeline("lab", mitigation="lab-nemo", device="cpu")
    nemo = recorded()
    assert nemo == AuditedModel.from_pretrained("lab", mitigation="lab-nemo").mitigation
    folder = save_mitigation(tmp_path / "mask", mask())
    with apply_mitigation(pipe, folder):
        both = recorded()
    with apply_mitigation(pipe, mask()):
        assert recorded().sha256 == both.sha256
        assert both.method == f"nemo, {mask().method}"
    assert recorded() == nemo
    assert AuditedModel.of(load_pipeline("lab", device="cpu")).mitigation is None


def test_a_part_of_a_mitigation_is_another_one() -> None:
    pipe, records = tiny_pipeline(), []
    for only in (None, "a", "b"):
        with apply_mitigation(pipe, mask(), only=only):
            records.append(AuditedModel.of(pipe).mitigation)
    assert len({record.sha256 for record in records if record}) == 3


def test_detections_and_mitigations_know_what_a_pipeline_carries(tmp_path: Path) -> None:
    pipe, suspects = tiny_pipeline(), [Suspect("cat", "a cat")]
    settings = DetectSettings(detectors=("anisotropy",), seeds=1, num_inference_steps=1)
    bare = detect(pipe, suspects, out=tmp_path / "bare", settings=settings)
    with apply_mitigation(pipe, mask()):
        mitigated = detect(pipe, suspects, out=tmp_path / "mitigated", settings=settings)
        with pytest.raises(InputError, match="mitigation is null there and"):
            detect(pipe, suspects, out=tmp_path / "bare", settings=settings)
        with pytest.raises(InputError, match=f"carries the mitigation {mask().method} already"):
            mitigate(pipe, suspects, "prompt-guard", out=tmp_path / "guard")
    assert bare["mitigation"] is None
    assert mitigated["mitigation"]
