"""Step caches and other hooks with a memory are refused before the denoiser is called, in all families."""

from __future__ import annotations

from typing import Any

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
from memorization.generation import Sampling, generate
from memorization.text_embeddings import empty_text
from ttsnap import TTSnapPipeline


def search(pipe: Any, schedule: str = "0:0.5") -> Any:
    pipe = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: images.mean((1, 2, 3)))
    return pipe("a dog", num_inference_steps=2, num_candidates=2, seed=5, schedule=schedule, height=32, width=32)


def step_caches(pipe: Any) -> dict[str, Any]:
    """diffusers' caches, by name."""
    now = {"current_timestep_callback": lambda: 500}
    return {
        "first-block": FirstBlockCacheConfig(threshold=0.2),
        "taylor-seer": TaylorSeerCacheConfig(),
        "mag": MagCacheConfig(num_inference_steps=6, mag_ratios=[1.0] * 6),
        "pyramid": PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, **now),
        "faster": FasterCacheConfig(is_guidance_distilled=True, **now),
    }


@pytest.mark.parametrize("name", ["flux", "chroma", "qwen-image"])
def test_every_cache_of_the_denoiser_is_refused_before_it_is_called(name):
    pipe, calls = family_pipeline(name), []
    pipe.transformer.register_forward_hook(lambda *call: calls.append(call))
    caches = step_caches(pipe)
    for cache in caches.values() if name == "flux" else [caches["pyramid"]]:
        pipe.transformer.enable_cache(cache)
        for schedule in ("1:0.5", ""):
            with pytest.raises(InputError, match=r"call pipe.transformer.disable_cache\(\) first"):
                search(pipe, schedule=schedule)
        with pytest.raises(InputError, match="has a cache"):
            generate(pipe, empty_text(pipe), empty_text(pipe), [1], sampling=Sampling(2, 3.0, 1))
        pipe.transformer.disable_cache()
    assert not calls
    assert search(pipe).images


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
