"""Wan 2.1 and 2.2: videos; guidance by a second pass; Wan 2.2 changes its denoiser below some noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit.families.base import (
    FLOW,
    FLOW_SHIFTED,
    Autoencoder,
    Call,
    Decoding,
    Family,
    Inputs,
    Pipeline,
    Size,
    VideoSize,
)

__all__ = ["WAN"]


def _frames_made(pipe: Pipeline, num_frames: int) -> int:
    """The pipeline takes the next number that its autoencoder can make."""
    factor = int(pipe.vae_scale_factor_temporal)
    return num_frames // factor * factor + 1 if num_frames % factor != 1 else num_frames


def _noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    frames = size.frames if isinstance(size, VideoSize) else 1
    grid = (frames - 1) // pipe.vae_scale_factor_temporal + 1
    factor = pipe.vae_scale_factor_spatial
    return (pipe.transformer.config.in_channels, grid, size.height // factor, size.width // factor)


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    dtype = pipe.transformer.dtype
    timestep = call.each_timestep()
    if pipe.config.expand_timesteps:  # one for each token
        _, _, frames, height, width = call.latents.shape
        timestep = timestep[:, None].expand(-1, frames * -(-height // 2) * -(-width // 2))
    named = {
        "hidden_states": call.latents.to(dtype),
        "timestep": timestep,
        "encoder_hidden_states": call.embeds.prompt_embeds.to(dtype),
        "attention_kwargs": None,
    }
    return Inputs((), named)


def _decode(pipe: Pipeline, latents: Tensor, vae: Autoencoder, decoding: Decoding) -> Tensor:
    latents = latents.to(vae.dtype)
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    reciprocal = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)
    video: Tensor = vae.decode(latents / reciprocal + mean, return_dict=False)[0]
    return video


def _refusals(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    """A denoiser call has one price: two denoisers must be alike."""
    first, second = pipe.transformer, pipe.transformer_2
    if first is None:
        return "it has no transformer, only a transformer_2; load both, or a Wan 2.1"
    if second is not None and pipe.config.boundary_ratio is not None:
        own, other = ({k: v for k, v in part.config.items() if k[:1] != "_"} for part in (first, second))
        if own != other:
            return "its two transformers differ in size, and the cost of a step is counted as one; use two of one size"
    return None


def _whole_only(pipe: Pipeline, options: Mapping[str, object]) -> str | None:
    """Latents are handed back in float32; only these schedulers make of them what they make of half precision."""
    name = type(pipe.scheduler).__name__
    if pipe.transformer.dtype == torch.float32 or name in FLOW_SHIFTED:
        return None
    return f"in half precision {name} rounds what it would not after a cut; use float32, {' or '.join(FLOW_SHIFTED)}"


WAN = Family(
    name="Wan 2.1/2.2",
    pipeline="WanPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None),
    inputs=_inputs,
    schedulers=FLOW,
    guidance="classifier-free, a second pass",
    guidance_batched=False,
    default_size=lambda pipe: VideoSize(480, 832, _frames_made(pipe, 81)),
    multiple=lambda pipe: math.lcm(16, pipe.vae_scale_factor_spatial * pipe.transformer.config.patch_size[-1]),
    noise_shape=_noise_shape,
    noise_dtype=torch.float32,
    latents_are_map=False,
    frames=True,
    frames_made=_frames_made,
    decode=_decode,
    search_only="it makes videos",
    encoding=frozenset({"max_sequence_length"}),
    refusals=_refusals,
    whole_only=_whole_only,
    refused="two transformers of different sizes; in half precision looks by other schedulers than Euler, UniPC",
)
