"""A pipeline that was used before counts the same prices as a fresh one, whatever has changed since the last call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from test_preview_vae import small_vae
from tiny import tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from torch import nn

import diffkit.flops
from diffkit.flops import SMALL as SMALL_NETWORK
from diffkit.flops import count_flops
from diffkit.ledger import Prices
from ttsnap import TTSnapPipeline

STEPS = 2
SMALL, LARGE = {"height": 64, "width": 64}, {"height": 128, "width": 128}


class Judge:
    """A reward that does not state its FLOP: a convolution over the whole image."""

    name, higher_is_better, range, flops_per_image = "judge", True, (-10.0, 10.0), None

    def __init__(self, channels: int = 4) -> None:
        self.layer = nn.Conv2d(3, channels, 3)

    def score(self, images, prompts):
        return self.layer(images).mean((1, 2, 3))


def searcher(stock: Any = None, **options: Any) -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline() if stock is None else stock, **{"reward": Judge(), **options})


def prices(pipe: TTSnapPipeline, prompt: Any = "a dog", **options: Any) -> Prices:
    """What a call writes into its ledger."""
    return pipe(prompt, **{"num_inference_steps": STEPS, "num_candidates": 1, "seed": 0, **options}).ledger.flops


SMALL_DECODER, OTHER_DECODER = small_vae(), tiny_pipeline(seed=1).vae
CALLS = {
    "small": SMALL,
    "large": LARGE,
    "wide": {"height": 64, "width": 128},
    "unguided": {"guidance_scale": 1.0},
    "two prompts": {"prompt": ["a dog", "cat"]},
    "another prompt": {"prompt": "cat at a dog"},
    "preview": {"preview_vae": SMALL_DECODER},
    "another preview": {"preview_vae": OTHER_DECODER},
    "another reward": {"reward": Judge(7)},
}


def test_every_call_has_the_prices_of_a_fresh_pipeline():
    """One pipeline makes all calls forwards and backwards."""
    fresh = {name: prices(searcher(), **call) for name, call in CALLS.items()}
    used = searcher()
    for name in [*CALLS, *reversed(CALLS)]:
        assert prices(used, **CALLS[name]) == fresh[name], name


def test_the_price_of_a_score_depends_on_the_size_of_the_images():
    pipe = searcher()
    small, large = (prices(pipe, **size).verify for size in (SMALL, LARGE))
    assert [small, large] == [2 * 4 * 27 * side**2 for side in (62, 126)]


def test_a_reward_may_change_what_it_states():
    reward = Judge()
    pipe = searcher(reward=reward)
    assert prices(pipe).verify == 2 * 4 * 27 * 62**2
    reward.flops_per_image = 5.0
    assert prices(pipe).verify == 5


def adapted(pipe: Any) -> None:
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k"]), "mine")
    pipe.unet.eval()


def taken_off(pipe: Any) -> None:
    adapted(pipe)
    pipe.unet.delete_adapters("mine")


def fused(pipe: Any) -> None:
    adapted(pipe)
    pipe.unet.fuse_lora()


def switched_off(pipe: Any) -> None:
    adapted(pipe)
    pipe.unet.disable_adapters()


def half(pipe: Any) -> None:
    pipe.to(dtype=torch.bfloat16)


def cut_off(pipe: Any) -> None:
    """A denoiser with a block less."""
    pipe.unet.mid_block = None


CHANGES = [adapted, fused, switched_off, taken_off, half, cut_off]


@pytest.mark.parametrize("change", CHANGES)
def test_a_denoiser_that_was_changed_in_between_is_priced_anew(change):
    used = searcher()
    before = prices(used)
    change(used)
    fresh = tiny_pipeline()
    change(fresh)
    after = prices(used)
    assert after == prices(searcher(fresh))
    assert (after.call > before.call) == (change is adapted)
    assert (after.call < before.call) == (change is cut_off)


@pytest.mark.parametrize("small", [SMALL_NETWORK, 0])
def test_an_adapter_is_priced_while_it_works(small, monkeypatch):
    """Loaded, fused, unfused, taken off, one after the other on the same denoiser; counted either way."""
    monkeypatch.setattr(diffkit.flops, "SMALL", small)
    pipe = searcher()
    plain = prices(pipe).call
    adapted(pipe)
    with_adapter = prices(pipe).call
    assert with_adapter > plain
    pipe.unet.fuse_lora()
    assert prices(pipe).call == plain
    pipe.unet.unfuse_lora()
    assert prices(pipe).call == with_adapter
    pipe.unet.delete_adapters("mine")
    assert prices(pipe).call == plain


@pytest.mark.parametrize("name", ["sd1-controlnet", "sdxl", "flux", "qwen-image"])
def test_prices_of_other_families_depend_on_prompts_and_sizes(name):
    row = FAMILY_ROWS[name]
    options = {**row.options, **row.guided, "micro_batch": 1}
    used = searcher(family_pipeline(name))
    unguided, long = {**options, **row.unguided}, "a cat at a dog"
    for prompt, how in [(["a dog", long], options), ([long, "a dog"], options), ("cat", options), ("cat", unguided)]:
        assert prices(used, prompt, **how) == prices(searcher(family_pipeline(name)), prompt, **how)


def test_a_controlnet_that_was_changed_is_priced_anew():
    row = FAMILY_ROWS["sd1-controlnet"]
    used = searcher(family_pipeline("sd1-controlnet"))
    before = prices(used, **row.options)
    used.controlnet.mid_block = nn.Identity()
    used.controlnet.mid_block.forward = lambda sample, *args, **kwargs: sample
    assert prices(used, **row.options).call < before.call


def test_a_key_is_measured_once_for_each_structure():
    layer = nn.Sequential(nn.Linear(5, 7))
    counted = []

    def count() -> float | None:
        return count_flops(layer, ("key",), lambda: (counted.append(1), layer(torch.empty(3, 5))))

    assert count() == count() == 2 * 3 * 5 * 7
    assert len(counted) == 1
    layer.append(nn.Linear(7, 2))
    assert count() == 2 * 3 * (5 * 7 + 7 * 2)
    layer[1] = nn.Linear(7, 1)
    assert count() == 2 * 3 * (5 * 7 + 7)
    assert len(counted) == 3


@pytest.mark.parametrize("training", [True, False])
def test_counting_draws_no_numbers(training):
    layer, state = nn.Sequential(nn.Linear(5, 7), nn.Dropout()).train(training), torch.get_rng_state()
    assert count_flops(layer, ("key",), lambda: layer(torch.ones(3, 5))) == 2 * 3 * 5 * 7
    assert torch.equal(torch.get_rng_state(), state)


def listened(pipe: Any) -> list[str]:
    """Who hears of calls: a part of the denoiser, the denoiser itself, the decoder."""
    heard: list[str] = []
    for part in (pipe.unet.mid_block, pipe.unet, pipe.vae.decoder):
        part.register_forward_hook(lambda module, inputs, output: heard.append(type(module).__name__))
    return heard


def compiled(name: str) -> Any:
    def change(pipe: Any) -> None:
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))

    return change


def compiled_parts(pipe: Any) -> None:
    """Regional compilation of the denoiser, a compiled method, and a compiled part of the autoencoder."""
    pipe.unet._repeated_blocks = ["BasicTransformerBlock"]
    pipe.unet.compile_repeated_blocks(backend="eager")
    pipe.vae.decoder = torch.compile(pipe.vae.decoder, backend="eager")
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")


def stored_small(pipe: Any) -> None:
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def streamed(pipe: Any) -> None:
    host = torch.device("cpu")
    pipe.unet.enable_group_offload(onload_device=host, offload_device=host, offload_type="leaf_level")


def own_hooks(pipe: Any) -> None:
    listened(pipe)


UNSEEN = [compiled("unet"), compiled("vae"), compiled_parts, stored_small, streamed, own_hooks]


@pytest.mark.parametrize("change", UNSEEN, ids=["unet", "vae", "parts", "stored", "streamed", "hooks"])
def test_compilation_and_hooks_do_not_change_prices(change):
    plain, pipe = prices(searcher()), searcher()
    change(pipe)
    with torch.compiler.set_stance("force_eager"):  # compilation itself takes long
        assert prices(pipe) == plain
        out = pipe("a dog", budget="2x", num_inference_steps=STEPS, seed=0)
    assert out.ledger.calls == 2 * STEPS


@pytest.mark.parametrize("small", [SMALL_NETWORK, 0])
def test_counting_is_heard_by_no_hook(small, monkeypatch):
    monkeypatch.setattr(diffkit.flops, "SMALL", small)
    pipe = searcher()
    heard = listened(pipe)
    out = pipe("a dog", num_candidates=1, num_inference_steps=STEPS, seed=0)
    assert heard == ["UNetMidBlock2DCrossAttn", "UNet2DConditionModel"] * out.ledger.calls + ["DecoderTiny"]


def test_the_first_call_may_be_in_autocast(monkeypatch):
    monkeypatch.setattr(diffkit.flops, "SMALL", 0)
    stock, pipe = tiny_pipeline(), searcher()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pipe("a dog", num_candidates=1, num_inference_steps=STEPS, seeds=[3], output_type="pt")
        torch.clear_autocast_cache()
        generator = torch.Generator().manual_seed(3)
        expected = stock("a dog", num_inference_steps=STEPS, generator=generator, output_type="pt")
    assert torch.equal(out.images, expected.images)
    assert out.ledger.flops == prices(searcher())
