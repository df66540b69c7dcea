"""HunyuanVideo: videos; the guidance scale is told to the denoiser, ``true_cfg_scale`` is a second pass."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from diffkit.families.base import Autoencoder, Call, Decoding, Family, Inputs, Pipeline, Size, VideoSize
from diffkit.families.flux import true_guidance

__all__ = ["HUNYUAN_VIDEO"]


def _frames_made(pipe: Pipeline, num_frames: int) -> int:
    factor = int(pipe.vae_scale_factor_temporal)
    return (num_frames - 1) // factor * factor + 1


def _noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    frames = size.frames if isinstance(size, VideoSize) else 1
    grid, factor = (frames - 1) // pipe.vae_scale_factor_temporal + 1, pipe.vae_scale_factor_spatial
    return (pipe.transformer.config.in_channels, grid, size.height // factor, size.width // factor)


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    dtype, companions = pipe.transformer.dtype, call.embeds.companions
    scales = [call.guidance_scale] * len(call.latents)
    named = {
        "hidden_states": call.latents.to(dtype),
        "timestep": call.each_timestep().to(call.latents.dtype),
        "encoder_hidden_states": call.embeds.prompt_embeds.to(dtype),
        "encoder_attention_mask": companions["prompt_attention_mask"].to(dtype),
        "pooled_projections": companions["pooled_prompt_embeds"].to(dtype),
        "guidance": torch.tensor(scales, dtype=dtype, device=call.latents.device) * 1000.0,
        "attention_kwargs": None,
    }
    return Inputs((), named)


def _decode(pipe: Pipeline, latents: Tensor, vae: Autoencoder, decoding: Decoding) -> Tensor:
    video: Tensor = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    return video


def _whole_only(pipe: Pipeline, options: Mapping[str, object]) -> str | None:
    """In half precision the loop rounds its timesteps after the first step, as it does not with latents handed back."""
    if pipe.transformer.dtype == torch.float32:
        return None
    return "its loop carries half precision after the first step, and takes latents back in float32; use float32"


HUNYUAN_VIDEO = Family(
    name="HunyuanVideo",
    pipeline="HunyuanVideoPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"),
    inputs=_inputs,
    schedulers=("FlowMatchEulerDiscreteScheduler",),
    guided=true_guidance(1.0),
    guidance="told to the denoiser; true_cfg_scale by a second pass",
    guidance_batched=False,
    default_size=lambda pipe: VideoSize(720, 1280, _frames_made(pipe, 129)),
    multiple=lambda pipe: math.lcm(16, pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size),
    noise_shape=_noise_shape,
    noise_dtype=torch.float32,
    latents_are_map=False,
    frames=True,
    frames_made=_frames_made,
    decode=_decode,
    search_only="it makes videos",
    steps=lambda pipe, steps, size: {"sigmas": np.linspace(1.0, 0.0, steps + 1)[:-1]},
    encoding=frozenset({"prompt_2", "negative_prompt_2", "prompt_template", "max_sequence_length"}),
    whole_only=_whole_only,
    refused="looks in mid-denoising in half precision",
)
