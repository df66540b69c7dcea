"""What users do with pipelines beside a mitigation: fused projections, adapters, compiled and shrunk denoisers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny import tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline

from diffkit.errors import InputError
from diffkit.mitigation import Mitigation, apply_mitigation, save_mitigation
from diffkit.mitigation.record import checksum_for, recorded
from diffkit.mitigation.shrink import shrink
from diffkit.runs import sha256_folder
from memorization.mitigation.layers import feed_forward_layers, matching, value_layers
from memorization.mitigation.nemo_method import calibrate_nemo_threshold
from memorization.mitigation.prompt_guard import calibrate_guard_target
from memorization.mitigation.pruning.layers import prunable_layers
from memorization.mitigation.run import contents_of

BLOCK = "mid_block.attentions.0.transformer_blocks.0"
TO_V, FF = f"{BLOCK}.attn2.to_v", f"{BLOCK}.ff.net.2"


def mask(**tensors: torch.Tensor) -> Mitigation:
    rows = {f"unet.{TO_V}.rows": torch.tensor([1, 5])}
    return Mitigation("by-hand", "mask", "tiny", tensors=tensors or rows)


def save_adapter(folder: Path) -> Path:
    donor = tiny_pipeline()
    donor.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_v"], init_lora_weights=False))
    donor.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(donor.unet))
    return folder


def test_fused_projections_are_refused_and_unfused_ones_taken() -> None:
    """A fused attention runs a copy of its projections, which no mask reaches."""
    pipe = tiny_pipeline()
    own = pipe.unet.get_parameter(f"{TO_V}.weight").clone()
    with apply_mitigation(pipe, mask()) as applied:
        pipe.fuse_qkv_projections(vae=False)
        with pytest.raises(InputError, match=r"fused with other projections; call pipe\.unfuse_qkv_projections"):
            applied.undo()
        pipe.unfuse_qkv_projections(vae=False)
    assert torch.equal(pipe.unet.get_parameter(f"{TO_V}.weight"), own)

    pipe.fuse_qkv_projections(vae=False)
    for refused in (
        lambda: apply_mitigation(pipe, mask()),
        lambda: matching(pipe, value_layers(pipe)),
        lambda: prunable_layers(pipe),
    ):
        with pytest.raises(InputError, match="is fused with other projections"):
            refused()
    assert matching(pipe, feed_forward_layers(pipe))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_fused_joint_attention_is_refused(family: str) -> None:
    pipe = family_pipeline(family)
    pipe.transformer.fuse_qkv_projections()
    with pytest.raises(InputError, match="is fused with other projections"):
        matching(pipe, value_layers(pipe))
    assert FAMILY_ROWS[family]


def test_adapters_beside_the_weights_are_refused(tmp_path: Path) -> None:
    """An adapter runs beside what a mask switches off, and a second adapter switches the first off."""
    adapter = save_adapter(tmp_path / "lora")
    pipe = tiny_pipeline()
    pipe.load_lora_weights(str(adapter), weight_name="pytorch_lora_weights.safetensors")
    state = {f"unet.{TO_V}.weight": torch.zeros_like(tiny_pipeline().unet.get_parameter(f"{TO_V}.weight"))}
    for mitigation in (mask(), Mitigation("by-hand", "delta", "tiny", tensors=state)):
        with pytest.raises(InputError, match=r"unet has LoRA adapters .* pipe\.unload_lora_weights"):
            apply_mitigation(pipe, mitigation)
    with pytest.raises(InputError, match="unet has LoRA adapters"):
        apply_mitigation(pipe, Mitigation("by-hand", "lora", "tiny", tensors={}))
    with pytest.raises(InputError, match="unet has LoRA adapters"):
        prunable_layers(pipe)

    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.unet.get_parameter(f"{TO_V}.weight").clone()
    with apply_mitigation(pipe, mask()):
        assert not pipe.unet.get_parameter(f"{TO_V}.weight")[[1, 5]].any()
    assert torch.equal(pipe.unet.get_parameter(f"{TO_V}.weight"), fused)


def test_an_adapter_loaded_after_a_mitigation_is_noticed(tmp_path: Path) -> None:
    pipe, adapter = tiny_pipeline(), save_adapter(tmp_path / "lora")
    own = pipe.unet.get_parameter(f"{TO_V}.weight").clone()
    applied = apply_mitigation(pipe, mask())
    pipe.load_lora_weights(str(adapter), weight_name="pytorch_lora_weights.safetensors", adapter_name="style")
    with pytest.raises(InputError, match="The LoRA 'style' was loaded into a pipeline that carries a mitigation"):
        recorded(pipe)
    with pytest.raises(InputError, match="unet has LoRA adapters"):
        applied.undo()
    guarded = tiny_pipeline()
    guarded.load_lora_weights(str(adapter), weight_name="pytorch_lora_weights.safetensors")
    settings = {"factor": 1.25, "mask_padding": False}
    with apply_mitigation(guarded, Mitigation("attention-guard", "attention-guard", "tiny", {}, settings=settings)):
        assert recorded(guarded) is not None  # it changes no weight
    pipe.unload_lora_weights()
    applied.undo()
    assert torch.equal(pipe.unet.get_parameter(f"{TO_V}.weight"), own)
    assert recorded(pipe) is None


def test_a_compiled_denoiser_has_the_names_of_its_own() -> None:
    pipe = tiny_pipeline()
    names = [list(matching(pipe, value_layers(pipe))), list(prunable_layers(pipe))]
    pipe.unet = torch.compile(pipe.unet)
    assert [list(matching(pipe, value_layers(pipe))), list(prunable_layers(pipe))] == names
    with apply_mitigation(pipe, mask()):
        assert not pipe.unet.get_parameter(f"_orig_mod.{TO_V}.weight")[[1, 5]].any()


def test_a_shrunk_pipeline_keeps_the_rest_of_the_mask_and_is_recorded() -> None:
    pipe = tiny_pipeline()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    inner = pipe.unet.get_submodule(FF).in_features
    columns = torch.arange(len(before[f"{FF}.weight"]) * inner).view(-1, inner)[:, :8].flatten()
    both = mask(**{f"unet.{FF}.weights": columns, f"unet.{TO_V}.rows": torch.tensor([1, 5])})
    with shrink(pipe, both):
        assert pipe.unet.get_submodule(FF).in_features == inner - 8
        assert not pipe.unet.get_parameter(f"{TO_V}.weight")[[1, 5]].any()
        assert recorded(pipe) is not None
    assert recorded(pipe) is None
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


def test_pipelines_of_the_same_components_carry_the_same_mitigation() -> None:
    pipe = tiny_pipeline()
    other: Any = type(pipe)(**pipe.components, requires_safety_checker=False)
    with apply_mitigation(pipe, mask()):
        assert recorded(other) == recorded(pipe) is not None
    assert recorded(other) is None


def test_a_detection_goes_on_when_its_mitigation_was_resumed(tmp_path: Path) -> None:
    """Version 0.1.0 stated the checksum of the whole folder, which a command that resumes there changes."""
    folder, out = save_mitigation(tmp_path / "mask", mask()), tmp_path / "detect"
    first = checksum_for(out, folder)
    whole = sha256_folder(folder)
    out.mkdir()
    (out / "run.json").write_text(f'{{"config": {{"mitigation": "{whole}"}}}}')
    assert checksum_for(out, folder) == whole
    (folder / "run.json").write_text("{}")
    assert checksum_for(out, folder) == first != whole


def test_thresholds_of_predictions_that_are_not_finite_are_refused() -> None:
    pipe = tiny_pipeline()
    pipe.unet.conv_out.register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    with pytest.raises(InputError, match="predictions of ordinary captions are not finite; load the model in float32"):
        calibrate_nemo_threshold(pipe, ["a cat", "a dog"], [0, 1], steps=1)
    with pytest.raises(InputError, match="predictions of ordinary captions are not finite"):
        calibrate_guard_target(pipe, ["a cat", "a dog"], steps=1, seed=0)


def test_the_mask_of_a_setting_is_part_of_the_run(tmp_path: Path) -> None:
    class Settings:
        mask = str(save_mitigation(tmp_path / "mask", mask()))

    first = contents_of(Settings())
    save_mitigation(tmp_path / "mask", mask(**{f"unet.{TO_V}.rows": torch.tensor([2])}))
    assert first.keys() == {"mask"}
    assert contents_of(Settings()) != first
