"""Lumina-Image 2.0 and Z-Image: flow matching with time running from noise to image, and one Gemma or Qwen encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffkit.families.base import FLOW, FLOW_SHIFTED, Call, Family, Inputs, Pipeline, Size, shifted, unshifted
from diffkit.families.flow import linear_sigmas, patches, shift_of_tokens

__all__ = ["LUMINA2", "Z_IMAGE", "even_noise_shape"]


def even_noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w), whose sides are even."""
    cell = pipe.vae_scale_factor * 2
    return (pipe.transformer.config.in_channels, 2 * (size.height // cell), 2 * (size.width // cell))


def _inputs_lumina(pipe: Pipeline, call: Call) -> Inputs:
    named = {
        "hidden_states": call.latents,
        "timestep": 1 - call.each_timestep() / pipe.scheduler.config.num_train_timesteps,
        "encoder_hidden_states": call.embeds.prompt_embeds,
        "encoder_attention_mask": call.embeds.companions["prompt_attention_mask"],
    }
    return Inputs((), named)


def _negated(output: Any, call: Call) -> Tensor:
    """The model's velocity points from noise to image, the scheduler's the other way."""
    velocity: Tensor = -output[0]
    return velocity


def _negative_of_lumina(pipe: Pipeline, text: list[str] | None, options: Mapping[str, object]) -> tuple[Any, ...]:
    """Without the system prompt."""
    length = options["max_sequence_length"]
    return tuple(pipe._get_gemma_prompt_embeds(text, device=pipe._execution_device, max_sequence_length=length))


def _refuse_truncation(pipe: Pipeline, options: Mapping[str, object]) -> str | None:
    if options.get("cfg_trunc_ratio", 1.0) != 1.0:
        return "truncated guidance counts the steps of the loop; leave out cfg_trunc_ratio"
    return None


LUMINA2 = Family(
    name="Lumina-Image 2.0",
    pipeline="Lumina2Pipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "prompt_attention_mask", None, None),
    inputs=_inputs_lumina,
    schedulers=FLOW_SHIFTED,
    output=_negated,
    guidance="classifier-free, a second pass, normalized",
    guidance_batched=False,
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=even_noise_shape,
    to_denoiser=shifted,
    to_vae=unshifted,
    # The pipeline takes the number of channels for the number of tokens, and so must we.
    steps=lambda pipe, steps, size: linear_sigmas(pipe, steps, pipe.transformer.config.in_channels),
    encoding=frozenset({"max_sequence_length", "system_prompt"}),
    encode_negative=_negative_of_lumina,
    whole_only=_refuse_truncation,
    refused="in a schedule: cfg_trunc_ratio",
)


def _inputs_z(pipe: Pipeline, call: Call) -> Inputs:
    latents = call.latents.to(pipe.transformer.dtype).unsqueeze(2)
    clock = (1000 - call.each_timestep()) / 1000
    return Inputs((list(latents.unbind(0)), clock, call.embeds.texts()), {})


def _stacked(output: Any, call: Call) -> Tensor:
    """The list of the rows' velocities, each (C, 1, h, w), against the clock."""
    return -torch.stack([row.float() for row in output[0]]).squeeze(2)


def _steps_z(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    return {"sigmas": sigmas, "mu": shift_of_tokens(pipe, patches(pipe, size))}


Z_IMAGE = Family(
    name="Z-Image",
    noise_dtype=torch.float32,
    pipeline="ZImagePipeline",
    denoiser="transformer",
    encoded=("prompt_embeds",),
    layout="listed",
    inputs=_inputs_z,
    schedulers=FLOW[:1],
    output=_stacked,
    guided=lambda pipe, guidance_scale, options: guidance_scale > 0,
    guidance="classifier-free from 0 on, one batch of both",
    guidance_batched=False,  # the batch is [positive; negative]
    default_size=lambda pipe: Size(1024, 1024),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=even_noise_shape,
    to_denoiser=shifted,
    to_vae=unshifted,
    steps=_steps_z,
    encoding=frozenset({"max_sequence_length"}),
)
