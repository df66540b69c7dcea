"""Qwen-Image: packed latents of a video VAE, prompts of different lengths, ``true_cfg_scale`` by a second pass."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.families.base import FLOW_SHIFTED, Autoencoder, Call, Family, Inputs, Pipeline, Size
from diffkit.families.flow import linear_sigmas, pack, patches, unpack
from diffkit.families.flux import noise_shape, true_guidance
from diffkit.prompt_embeds import MASK

__all__ = ["QWEN_IMAGE"]


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    mask = call.embeds.companions[MASK]
    cell = pipe.vae_scale_factor * 2
    guidance = None
    if pipe.transformer.config.guidance_embeds:
        device = call.latents.device
        guidance = torch.full([len(call.latents)], call.guidance_scale, device=device, dtype=torch.float32)
    named: dict[str, object] = {
        "hidden_states": call.latents,
        "timestep": call.each_timestep().to(call.latents.dtype) / 1000,
        "guidance": guidance,
        "encoder_hidden_states_mask": None if bool(mask.all()) else mask,
        "encoder_hidden_states": call.embeds.prompt_embeds,
        "img_shapes": [[(1, call.size.height // cell, call.size.width // cell)]] * len(call.latents),
        "attention_kwargs": {},
    }
    return Inputs((), named)


def _moments(vae: Autoencoder, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of each channel, (1, C, 1, 1, 1)."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(like)
    return mean, 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(like)


def _to_denoiser(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    mean, reciprocal = _moments(vae, latents)
    return pack(pipe, ((latents - mean) * reciprocal)[:, :, 0])


def _to_vae(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    mean, reciprocal = _moments(vae, latents)
    frames: Tensor = unpack(pipe, latents, size).unsqueeze(2) / reciprocal + mean
    return frames


QWEN_IMAGE = Family(
    name="Qwen-Image",
    pipeline="QwenImagePipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", MASK),
    layout="masked",
    inputs=_inputs,
    schedulers=FLOW_SHIFTED,
    guided=true_guidance(4.0),
    guidance="true_cfg_scale by a second pass, normalized",
    guidance_batched=False,
    default_size=lambda pipe: Size(*[pipe.default_sample_size * pipe.vae_scale_factor] * 2),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=noise_shape,
    pack=pack,
    latents_are_map=False,
    rounds=True,
    to_denoiser=_to_denoiser,
    to_vae=_to_vae,
    frames=True,
    steps=lambda pipe, steps, size: linear_sigmas(pipe, steps, patches(pipe, size)),
    encoding=frozenset({"max_sequence_length"}),
)
