"""HiDream-I1: flow matching with experts, four text encoders, images of one area."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from diffkit.families.base import FLOW_SHIFTED, Call, Family, Inputs, Pipeline, Size, shifted, unshifted
from diffkit.families.lumina2 import even_noise_shape

__all__ = ["HIDREAM"]


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    """The hidden layers of Llama come first, before the rows."""
    named = {
        "hidden_states": call.latents,
        "timesteps": call.each_timestep(),
        "encoder_hidden_states_t5": call.embeds.prompt_embeds,
        "encoder_hidden_states_llama3": call.embeds.companions["prompt_embeds_llama3"].transpose(0, 1),
        "pooled_embeds": call.embeds.companions["pooled_prompt_embeds"],
    }
    return Inputs((), named)


def _negated(output: Any, call: Call) -> Tensor:
    """The model's velocity points from noise to image, the scheduler's the other way."""
    velocity: Tensor = -output[0]
    return velocity


def _steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """Shifted by the most tokens that the denoiser takes; UniPC shifts by its own configuration."""
    from diffusers.pipelines.hidream_image.pipeline_hidream_image import calculate_shift

    if type(pipe.scheduler).__name__ == "UniPCMultistepScheduler":
        return {"num_inference_steps": steps}
    return {"num_inference_steps": steps, "mu": calculate_shift(pipe.transformer.max_seq)}


def _refuse_other_areas(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    """The pipeline itself would denoise at the size of the same shape and of the model's own area."""
    cell, side = pipe.vae_scale_factor * 2, pipe.default_sample_size * pipe.vae_scale_factor
    scale = math.sqrt(side**2 / (size.width * size.height))
    width, height = (int(value * scale // cell * cell) for value in (size.width, size.height))
    if (height, width) == tuple(size):
        return None
    return f"the pipeline would denoise at {height}x{width}; ask for that size"


HIDREAM = Family(
    name="HiDream-I1",
    pipeline="HiDreamImagePipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None, "prompt_embeds_llama3", None, "pooled_prompt_embeds", None),
    layout="layered",
    inputs=_inputs,
    schedulers=FLOW_SHIFTED,
    output=_negated,
    default_size=lambda pipe: Size(*[pipe.default_sample_size * pipe.vae_scale_factor] * 2),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=even_noise_shape,
    to_denoiser=shifted,
    to_vae=unshifted,
    steps=_steps,
    encoding=frozenset(
        {"max_sequence_length", *(f"{sign}prompt_{number}" for sign in ("", "negative_") for number in (2, 3, 4))}
    ),
    no_gradient="its experts hand no gradient to the text",
    refusals=_refuse_other_areas,
    refused="sizes of another area than the model's own",
)
