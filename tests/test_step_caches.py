"""Step caches and other hooks with a memory: stock images one at a time, refused where images would share them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks import HookRegistry
from tiny import tiny_pipeline
from tiny_families import family_pipeline

from diffkit.errors import InputError
from diffkit.seeds import generators
from memorization.generation import Sampling, generate
from memorization.text_embeddings import empty_text
from ttsnap import TTSnapPipeline

RUNNING: dict[str, Any] = {}
OPTIONS = {"num_inference_steps": 4, "height": 32, "width": 32}


def search(pipe: Any, schedule: str = "0:0.5", **options: Any) -> Any:
    pipe = RUNNING["pipe"] = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: images.mean((1, 2, 3)))
    return pipe("a dog", **{**OPTIONS, "num_candidates": 2, "seed": 5, "schedule": schedule, **options})


def step_caches() -> dict[str, Any]:
    """diffusers' caches, by name."""
    now = {
        "spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 901),
        "current_timestep_callback": lambda: RUNNING["pipe"].current_timestep,
    }  # fmt: skip
    return {
        "first-block": FirstBlockCacheConfig(threshold=10.0),
        "taylor-seer": TaylorSeerCacheConfig(),
        "mag": MagCacheConfig(num_inference_steps=4, mag_ratios=[1.0] * 4),
        "pyramid": PyramidAttentionBroadcastConfig(**now),
        "faster": FasterCacheConfig(is_guidance_distilled=True, **now),
    }


@pytest.mark.parametrize("name", ["flux", "chroma", "qwen-image"])
def test_every_cache_of_the_denoiser_is_refused_before_it_is_called(name):
    pipe, calls = family_pipeline(name), []
    pipe.transformer.register_forward_hook(lambda *call: calls.append(call))
    caches = step_caches()
    for cache in caches.values() if name == "flux" else [caches["pyramid"]]:
        pipe.transformer.enable_cache(cache)
        for refused in ({"schedule": "1:0.5"}, {"schedule": "", "micro_batch": 2}):
            with pytest.raises(InputError, match=r"call pipe.transformer.disable_cache\(\) first, or give schedule=''"):
                search(pipe, **refused)
        with pytest.raises(InputError, match="has a cache"):
            generate(pipe, empty_text(pipe), empty_text(pipe), [1], sampling=Sampling(2, 3.0, 1))
        pipe.transformer.disable_cache()
    assert not calls
    assert search(pipe).images


@pytest.mark.parametrize("name", step_caches())
def test_every_image_is_the_stock_image_with_a_cache_of_its_own(name):
    def cached() -> Any:
        pipe = family_pipeline("flux")
        pipe.transformer.enable_cache(step_caches()[name])
        return pipe

    def stock(pipe: Any, seed: int) -> Any:
        RUNNING["pipe"] = pipe
        return pipe("a dog", **OPTIONS, generator=generators([seed])[0]).images[0]

    images = [stock(cached(), seed) for seed in (6, 7)]
    assert name == "mag" or not np.array_equal(images[0], stock(family_pipeline("flux"), 6))  # it skips something
    out = search(cached(), schedule="", seed=None, seeds=[6, 7], num_images_per_prompt=2)
    assert sorted(out.seeds) == [6, 7]
    for image, seed in zip(out.images, out.seeds, strict=True):
        assert np.array_equal(image, images[seed - 6])
    assert out.ledger.calls == 8
    alone = search(cached(), schedule="", seed=None, num_candidates=1, generator=generators([6])[0])
    assert np.array_equal(alone.images[0], images[0])


def test_hooks_that_keep_something_from_step_to_step_are_refused_in_any_denoiser():
    pipe = tiny_pipeline()
    attention = r"attentions\.0\.transformer_blocks\.0"
    config = PyramidAttentionBroadcastConfig(
        cross_attention_block_skip_range=2, cross_attention_block_identifiers=(attention,),
        cross_attention_timestep_skip_range=(-1, 1001), current_timestep_callback=lambda: 500,
    )  # fmt: skip
    apply_pyramid_attention_broadcast(pipe.unet, config)
    hooks = [part._diffusers_hook.hooks for part in pipe.unet.modules() if hasattr(part, "_diffusers_hook")]
    [name] = {hook for registered in hooks for hook in registered}
    with pytest.raises(InputError, match="keeps what it saw from step to step"):
        search(pipe)
    HookRegistry.check_if_exists_or_initialize(pipe.unet).remove_hook(name, recurse=True)
    assert search(pipe).images
