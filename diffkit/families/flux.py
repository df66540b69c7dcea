"""FLUX.1: packed latents, guidance told to the denoiser, true guidance by a second pass where it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from diffkit.families.base import Call, Family, Inputs, Pipeline, Size
from diffkit.families.flow import linear_sigmas, pack, packed, patches, unpacked

__all__ = ["FLUX", "noise_shape", "true_guidance"]


def true_guidance(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
    """A second pass for the negative prompt: only at ``true_cfg_scale`` above 1, and with a negative prompt."""
    scale = cast("float", options.get("true_cfg_scale") or 1.0)
    return scale > 1 and bool(options.get("has_negative", True))


def noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w) before packing."""
    cell = pipe.vae_scale_factor * 2
    return (pipe.transformer.config.in_channels // 4, 2 * (size.height // cell), 2 * (size.width // cell))


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    latents, sequence = call.latents, call.embeds.prompt_embeds
    cell = pipe.vae_scale_factor * 2
    height, width = call.size.height // cell, call.size.width // cell
    guidance = None
    if pipe.transformer.config.guidance_embeds:
        guidance = torch.full([len(latents)], call.guidance_scale, device=latents.device, dtype=torch.float32)
    named = {
        "hidden_states": latents,
        "timestep": call.each_timestep().to(latents.dtype) / 1000,
        "guidance": guidance,
        "pooled_projections": call.embeds.companions["pooled_prompt_embeds"],
        "encoder_hidden_states": sequence,
        "txt_ids": torch.zeros(sequence.shape[1], 3, device=sequence.device, dtype=sequence.dtype),
        "img_ids": pipe._prepare_latent_image_ids(len(latents), height, width, latents.device, sequence.dtype),
        "joint_attention_kwargs": {},
    }
    return Inputs((), named)


FLUX = Family(
    name="FLUX.1",
    pipeline="FluxPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "pooled_prompt_embeds", None),
    inputs=_inputs,
    guided=true_guidance,
    guidance="told to the denoiser; true_cfg_scale by a second pass",
    default_size=lambda pipe: Size(*[pipe.default_sample_size * pipe.vae_scale_factor] * 2),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=noise_shape,
    pack=pack,
    to_denoiser=packed,
    to_vae=unpacked,
    steps=lambda pipe, steps, size: linear_sigmas(pipe, steps, patches(pipe, size)),
    encoding=frozenset({"max_sequence_length", "prompt_2", "negative_prompt_2"}),
)
