"""LTX-Video: packed latents of videos, noise levels that shift with the tokens; some decoders take noise too."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families.base import FLOW_SHIFTED, Autoencoder, Call, Decoding, Family, Inputs, Pipeline, Size, VideoSize
from diffkit.families.flow import linear_sigmas

__all__ = ["LTX"]

FRAME_RATE = 25  # the pipeline's default; the cost of a call does not depend on it


def _frames_made(pipe: Pipeline, num_frames: int) -> int:
    factor = int(pipe.vae_temporal_compression_ratio)
    return (num_frames - 1) // factor * factor + 1


def _grid(pipe: Pipeline, size: Size) -> tuple[int, int, int]:
    """Latent cells of a video: frames, height, width."""
    frames = size.frames if isinstance(size, VideoSize) else 1
    factor = pipe.vae_spatial_compression_ratio
    return (frames - 1) // pipe.vae_temporal_compression_ratio + 1, size.height // factor, size.width // factor


def _pack(pipe: Pipeline, latents: Tensor) -> Tensor:
    packed: Tensor = pipe._pack_latents(
        latents, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    )
    return packed


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    frames, height, width = _grid(pipe, call.size)
    factor = pipe.vae_spatial_compression_ratio
    named = {
        "hidden_states": call.latents.to(call.embeds.prompt_embeds.dtype),
        "encoder_hidden_states": call.embeds.prompt_embeds,
        "timestep": call.each_timestep(),
        "encoder_attention_mask": call.embeds.companions["prompt_attention_mask"],
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (pipe.vae_temporal_compression_ratio / FRAME_RATE, factor, factor),
        "attention_kwargs": None,
    }
    return Inputs((), named)


def _decode(pipe: Pipeline, latents: Tensor, vae: Autoencoder, decoding: Decoding) -> Tensor:
    patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    maps = pipe._unpack_latents(latents, *_grid(pipe, decoding.size), *patches)
    maps = pipe._denormalize_latents(maps, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    maps = maps.to(decoding.dtype)
    timestep: Tensor | None = None
    if vae.config.timestep_conditioning:
        at = _number(decoding.options, "decode_timestep", 0.0)
        like, scale = {"device": maps.device, "dtype": maps.dtype}, _number(decoding.options, "decode_noise_scale", at)
        share, timestep = torch.tensor([scale] * len(maps), **like), torch.tensor([at] * len(maps), **like)
        maps = _with_noise(maps, share[:, None, None, None, None], decoding)
    video: Tensor = vae.decode(maps.to(vae.dtype), timestep, return_dict=False)[0]
    return video


def _with_noise(maps: Tensor, share: Tensor, decoding: Decoding) -> Tensor:
    """The noise that the pipeline draws next, from copies of the generators."""
    from diffusers.utils.torch_utils import randn_tensor

    if decoding.generators is None:
        return maps
    copies = [generator.clone_state() for generator in decoding.generators]
    noise = randn_tensor(maps.shape, generator=copies, device=maps.device, dtype=maps.dtype)
    mixed: Tensor = (1 - share) * maps + share * noise
    return mixed


def _number(options: Mapping[str, object], name: str, default: float) -> float:
    """A setting of the decoder, the same for all videos.

    Raises:
        InputError: it is not one number.
    """
    value = options.get(name)
    if value is None:
        return default
    if isinstance(value, list | tuple) and len(value) == 1:
        [value] = value
    if not isinstance(value, int | float):
        raise InputError(f"{name} must be one number, the same for all candidates; got {value!r}.")
    return float(value)


def _refusals(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    """Settings of the decoder that are wrong, and a decoder whose own noise comes from no generator."""
    for name in ("decode_timestep", "decode_noise_scale"):
        _number(options, name, 0.0)
    if any(pipe.vae.config.decoder_inject_noise):
        return "its VAE draws noise from torch's global generator (decoder_inject_noise), and no seed draws it again"
    return None


LTX = Family(
    name="LTX-Video",
    pipeline="LTXPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "prompt_attention_mask", None, None),
    inputs=_inputs,
    output=lambda output, call: output[0].float(),
    schedulers=FLOW_SHIFTED,
    default_size=lambda pipe: VideoSize(512, 704, _frames_made(pipe, 161)),
    multiple=lambda pipe: math.lcm(32, pipe.vae_spatial_compression_ratio * pipe.transformer_spatial_patch_size),
    noise_shape=lambda pipe, size: (pipe.transformer.config.in_channels, *_grid(pipe, size)),
    noise_dtype=torch.float32,
    pack=_pack,
    latents_are_map=False,
    frames=True,
    frames_made=_frames_made,
    decode=_decode,
    search_only="it makes videos",
    steps=lambda pipe, steps, size: linear_sigmas(pipe, steps, math.prod(_grid(pipe, size))),
    encoding=frozenset({"max_sequence_length"}),
    refusals=_refusals,
    refused="a VAE with decoder_inject_noise, decode_timestep of each prompt's own",
)
