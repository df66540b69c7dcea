"""FLUX.2 and FLUX.2 Klein: latents normalized by the VAE's own statistics, texts from hidden layers of one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families.base import FLOW_SHIFTED, Autoencoder, Call, Family, Inputs, Pipeline, Size, no_refusal

__all__ = ["FLUX2", "FLUX2_KLEIN"]


def _places(pipe: Pipeline, size: Size) -> tuple[int, int]:
    """Rows and columns of tokens."""
    cell = pipe.vae_scale_factor * 2
    return size.height // cell, size.width // cell


def _noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w), a channel for each number of a token."""
    return (pipe.transformer.config.in_channels, *_places(pipe, size))


def _pack(pipe: Pipeline, latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return latents.reshape(*latents.shape[:2], -1).permute(0, 2, 1)


def _unpack(pipe: Pipeline, latents: Tensor, size: Size) -> Tensor:
    """The inverse of :func:`_pack`."""
    rows, _, channels = latents.shape
    return latents.permute(0, 2, 1).reshape(rows, channels, *_places(pipe, size))


def _moments(pipe: Pipeline, vae: Autoencoder, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (1, C, 1, 1); the pipeline's own where another decoder has none."""
    known = vae if hasattr(vae, "bn") else pipe.vae
    mean = known.bn.running_mean.view(1, -1, 1, 1).to(like)
    return mean, torch.sqrt(known.bn.running_var.view(1, -1, 1, 1) + known.config.batch_norm_eps).to(like)


def _to_denoiser(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    squares = pipe._patchify_latents(latents)
    mean, deviation = _moments(pipe, vae, squares)
    return _pack(pipe, (squares - mean) / deviation)


def _to_vae(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    unpacked = _unpack(pipe, latents, size)
    mean, deviation = _moments(pipe, vae, unpacked)
    squares: Tensor = pipe._unpatchify_latents(unpacked * deviation + mean)
    return squares


def _steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """Shifted by the number of tokens and of steps."""
    import numpy as np
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    height, width = _places(pipe, size)
    mu = compute_empirical_mu(image_seq_len=height * width, num_steps=steps)
    if pipe.scheduler.config.get("use_flow_sigmas"):
        return {"num_inference_steps": steps, "mu": mu}
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": mu}


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    latents, sequence = call.latents, call.embeds.prompt_embeds
    image = torch.empty(len(latents), 1, *_places(pipe, call.size), device="meta")
    named = {
        "hidden_states": latents.to(pipe.transformer.dtype),
        "timestep": call.each_timestep().to(latents.dtype) / 1000,
        "guidance": None,
        "encoder_hidden_states": sequence,
        "txt_ids": pipe._prepare_text_ids(sequence).to(sequence.device),
        "img_ids": pipe._prepare_latent_ids(image).to(latents.device),
        "joint_attention_kwargs": None,
    }
    return Inputs((), named)


def _inputs_told(pipe: Pipeline, call: Call) -> Inputs:
    """The denoiser is told the guidance scale."""
    guidance = torch.full([len(call.latents)], call.guidance_scale, device=call.latents.device, dtype=torch.float32)
    return Inputs((), {**_inputs(pipe, call).named, "guidance": guidance})


def _size_of_reference(pipe: Pipeline, picture: Any) -> Size:
    """Of the first reference picture, in area at most 1024 x 1024."""
    first = picture[0] if isinstance(picture, list | tuple) and picture else picture
    if not isinstance(first, Image.Image):
        raise InputError(f"A {type(pipe).__name__} needs image= as PIL images, got a {type(first).__name__}.")
    if first.width * first.height > 1024**2:
        first = pipe.image_processor._resize_to_target_area(first, 1024**2)
    cell = pipe.vae_scale_factor * 2
    return Size(first.height // cell * cell, first.width // cell * cell)


def _refusals(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    if options.get("caption_upsample_temperature"):
        return (
            "every part of it would rewrite the prompt anew; leave out caption_upsample_temperature, and give the "
            "prompt that pipe.upsample_prompt returns"
        )
    return None


FLUX2 = Family(
    name="FLUX.2",
    pipeline="Flux2Pipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None),
    inputs=_inputs_told,
    schedulers=FLOW_SHIFTED,
    guided=lambda pipe, guidance_scale, options: False,
    guidance="told to the denoiser",
    guidance_batched=False,
    default_size=lambda pipe: Size(*[pipe.default_sample_size * pipe.vae_scale_factor] * 2),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=_noise_shape,
    pack=_pack,
    resumed=_unpack,
    latents_are_map=False,
    rounds=True,
    to_denoiser=_to_denoiser,
    to_vae=_to_vae,
    steps=_steps,
    encoding=frozenset({"max_sequence_length", "text_encoder_out_layers"}),
    pictures=("image",),
    spare_pictures=frozenset({"image"}),
    references=True,
    size_of_picture=_size_of_reference,
    refusals=_refusals,
    refused="caption upsampling",
)


def _guided(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
    """Not where the model is distilled."""
    return guidance_scale > 1 and not pipe.config.is_distilled


FLUX2_KLEIN = replace(
    FLUX2,
    name="FLUX.2 Klein",
    pipeline="Flux2KleinPipeline",
    inputs=_inputs,
    guided=_guided,
    guidance="classifier-free, a second pass; none where the model is distilled",
    shown=lambda pipe, latents, size: _to_vae(pipe, latents, pipe.vae, size),
    refusals=no_refusal,
    refused="nothing",
)
