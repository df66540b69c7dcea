"""A shrunk denoiser against the masked one, family by family; undone to the bit, and saved where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from tiny_families import FAMILY_ROWS, family_pipeline
from torch import Tensor, nn

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import family_of, pipe_denoiser
from diffkit.loading import load_pipeline
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.mitigation.save_shrunk import save_shrunk
from diffkit.mitigation.shrink import remove_units, shrink
from diffkit.mitigation.units import removable_units
from diffkit.seeds import generators
from memorization.mitigation.pruning.structured import allocate_units, mask_of_units, prunable_units
from memorization.text_embeddings import encoded

FAMILIES = [name for name in FAMILY_ROWS if "controlnet" not in name]
HEADS_STAY = ("lumina2", "hidream")  # shared keys, a norm over all heads


def answer(pipe: Any) -> Tensor:
    """The denoiser's prediction for one caption at one noise."""
    size = (64, 64) if hasattr(pipe, "unet") or "Diffusion3" in type(pipe).__name__ else (32, 32)
    x = initial_latents(pipe, generators([3]), size)
    with torch.no_grad():
        return predict_noise(pipe, x, torch.tensor(500), encoded(pipe, ["a dog"]), size=size)


def mask(pipe: Any, patterns: tuple[str, ...] | None = None, sparsity: float = 0.4) -> Mitigation:
    """Whole units, chosen by chance."""
    units, layers = prunable_units(pipe, patterns)
    source = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(of.number, generator=source) for name, of in units.items()}
    counts = allocate_units(scores, dict.fromkeys(units, 1), sparsity, "uniform")
    return Mitigation("chance", "mask", "m", tensors=mask_of_units(units, layers, scores, counts))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shrunk_model_answers_as_the_masked_one(name: str) -> None:
    pipe = family_pipeline(name)
    denoiser, made = pipe_denoiser(pipe), mask(pipe)
    before, plain = {key: value.clone() for key, value in denoiser.state_dict().items()}, answer(pipe)
    with apply_mitigation(pipe, made):
        masked = answer(pipe)
    with shrink(pipe, made):
        shrunk = answer(pipe)
        sizes = {key: value.numel() for key, value in denoiser.state_dict().items()}
    assert not torch.allclose(masked, plain, atol=1e-3)
    torch.testing.assert_close(shrunk, masked, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(pipe), plain)
    assert all(torch.equal(value, before[key]) for key, value in denoiser.state_dict().items())
    smaller = {key.rpartition(".")[0] for key, n in sizes.items() if n < before[key].numel()}
    units, _ = prunable_units(pipe)
    part = family_of(pipe).denoiser
    assert {f"{part}.{layer}" for layer in smaller} >= {layer for of in units.values() for layer in of.columns}
    expected = {"channel"} | ({"group"} if part == "unet" else set()) | (set() if name in HEADS_STAY else {"head"})
    assert {of.kind for of in units.values()} == expected


def test_a_scale_and_shift_by_the_timestep_goes_with_its_group() -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, out_channels=8, temb_channels=6, groups=4, time_embedding_norm="scale_shift")
    x, embedding = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
    with torch.no_grad():
        block.conv2.weight[:, 2:4] = 0
        expected = block(x, embedding)
        undo = remove_units(block)
        assert (block.norm2.num_groups, block.time_emb_proj.out_features) == (3, 12)
        torch.testing.assert_close(block(x, embedding), expected)
        undo()
        assert torch.equal(block(x, embedding), expected)


def test_one_unit_of_each_module_stays() -> None:
    pipe = family_pipeline("sd1")
    everything = {
        f"unet.{layer}.weights": torch.arange(pipe.unet.get_parameter(f"{layer}.weight").numel())
        for units in removable_units(pipe.unet).values()
        for layer in units.columns
    }
    made = Mitigation("all", "mask", "m", tensors=everything)
    with apply_mitigation(pipe, made):
        masked = answer(pipe)
    with shrink(pipe, made):
        assert pipe.unet.mid_block.resnets[0].norm2.num_groups == 1
        torch.testing.assert_close(answer(pipe), masked, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_shrunk_is_refused_and_left_alone() -> None:
    pipe = family_pipeline("sd1")
    before = answer(pipe)
    single = Mitigation("few", "mask", "m", tensors={"unet.mid_block.resnets.0.conv2.weights": torch.arange(50)})
    with pytest.raises(InputError, match="structure=channels"):
        shrink(pipe, single)
    assert torch.equal(answer(pipe), before)
    with pytest.raises(InputError, match=r"matches 'unet\.x'"):
        prunable_units(pipe, ("unet.x",))
    adapted = family_pipeline("sd1").unet
    attention = adapted.mid_block.attentions[0].transformer_blocks[0].attn1
    attention.to_q = nn.Sequential(attention.to_q)  # as an adapter wraps it
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.head" not in removable_units(adapted)
    adapted.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert not removable_units(adapted)


@pytest.mark.parametrize(
    ("name", "patterns"), [("sana", ("*.ff.channel", "*.attn2.head")), ("lumina2", None), ("flux2", ("*.channel",))]
)
def test_a_folder_of_the_shrunk_model_is_an_ordinary_one(
    name: str, patterns: tuple[str, ...] | None, tmp_path: Path
) -> None:
    pipe = family_pipeline(name)
    config = dict(pipe.transformer.config)
    with shrink(pipe, mask(pipe, patterns)):
        save_shrunk(pipe, tmp_path / "small")
        expected = answer(pipe)
    assert {key: pipe.transformer.config[key] for key in config} == config
    loaded = load_pipeline(str(tmp_path / "small"), device="cpu")
    torch.testing.assert_close(answer(loaded), expected, rtol=1e-4, atol=1e-5)
    weights = [sum(value.numel() for value in each.transformer.parameters()) for each in (loaded, pipe)]
    assert weights[0] < weights[1]


def test_widths_that_no_configuration_states_are_refused(tmp_path: Path) -> None:
    pipe = family_pipeline("sd1")
    with shrink(pipe, mask(pipe)), pytest.raises(InputError, match="UNet2DConditionModel cannot state fewer heads"):
        save_shrunk(pipe, tmp_path)
    sana = family_pipeline("sana")
    with shrink(sana, mask(sana)), pytest.raises(InputError, match=r"one width for all blocks.*\*\.ff\.channel"):
        save_shrunk(sana, tmp_path)
    assert not list(tmp_path.iterdir())
