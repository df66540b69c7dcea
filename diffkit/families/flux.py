"""FLUX.1 and Chroma: packed latents; FLUX.1 takes the guidance scale as an input, and ``true_cfg_scale`` besides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch

from diffkit.families.base import FLOW_SHIFTED, Call, Family, Inputs, Pipeline, Size
from diffkit.families.flow import linear_sigmas, pack, packed, patches, shift_of_tokens, unpacked

__all__ = ["CHROMA", "FLUX", "noise_shape", "true_guidance"]


def true_guidance(default: float) -> Callable[[Pipeline, float, Mapping[str, object]], bool]:
    """A second pass for the negative prompt: only at ``true_cfg_scale`` above 1, and with a negative prompt.

    Args:
        default: of ``true_cfg_scale``.
    """

    def guided(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
        scale = cast("float", options.get("true_cfg_scale", default))
        return scale > 1 and options.get("negative_prompt") is not None

    return guided


def _steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    tokens = patches(pipe, size)
    if pipe.scheduler.config.get("use_flow_sigmas"):
        return {"num_inference_steps": steps, "mu": shift_of_tokens(pipe, tokens)}
    return linear_sigmas(pipe, steps, tokens)


def noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w) before packing."""
    cell = pipe.vae_scale_factor * 2
    return (pipe.transformer.config.in_channels // 4, 2 * (size.height // cell), 2 * (size.width // cell))


def _ids(pipe: Pipeline, call: Call) -> dict[str, object]:
    """Latents, timesteps in [0, 1], and the places of text and image tokens."""
    latents, sequence = call.latents, call.embeds.prompt_embeds
    cell = pipe.vae_scale_factor * 2
    height, width = call.size.height // cell, call.size.width // cell
    return {
        "hidden_states": latents,
        "timestep": call.each_timestep().to(latents.dtype) / 1000,
        "txt_ids": torch.zeros(sequence.shape[1], 3, device=sequence.device, dtype=sequence.dtype),
        "img_ids": pipe._prepare_latent_image_ids(len(latents), height, width, latents.device, sequence.dtype),
        "joint_attention_kwargs": {},
    }


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    guidance = None
    if pipe.transformer.config.guidance_embeds:
        device = call.latents.device
        guidance = torch.full([len(call.latents)], call.guidance_scale, device=device, dtype=torch.float32)
    named = _ids(pipe, call)
    named["pooled_projections"] = call.embeds.companions["pooled_prompt_embeds"]
    return Inputs((), named | {"guidance": guidance, "encoder_hidden_states": call.embeds.prompt_embeds})


def _refuse_idle_sigmas(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    if options.get("sigmas") is not None and pipe.scheduler.config.get("use_flow_sigmas"):
        return "the pipeline ignores sigmas where its scheduler says use_flow_sigmas; leave them out"
    return None


FLUX = Family(
    name="FLUX.1",
    pipeline="FluxPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", "pooled_prompt_embeds", None),
    inputs=_inputs,
    schedulers=FLOW_SHIFTED,
    guided=true_guidance(1.0),
    guidance="told to the denoiser; true_cfg_scale by a second pass",
    guidance_batched=False,
    text_attention=True,
    end_token="tokenizer_2",  # the sequence is T5's; CLIP only gives the pooled embedding
    default_size=lambda pipe: Size(*[pipe.default_sample_size * pipe.vae_scale_factor] * 2),
    multiple=lambda pipe: int(pipe.vae_scale_factor * 2),
    noise_shape=noise_shape,
    pack=pack,
    latents_are_map=False,
    rounds=True,
    to_denoiser=packed,
    to_vae=unpacked,
    steps=_steps,
    encoding=frozenset({"max_sequence_length", "prompt_2", "negative_prompt_2"}),
    refusals=_refuse_idle_sigmas,
    refused="sigmas with use_flow_sigmas",
)


def _inputs_chroma(pipe: Pipeline, call: Call) -> Inputs:
    """As FLUX.1, with a mask over text and image instead of guidance and pooled text."""
    latents, sequence = call.latents, call.embeds.prompt_embeds
    named = _ids(pipe, call)
    mask = call.embeds.companions["prompt_attention_mask"]
    named["attention_mask"] = pipe._prepare_attention_mask(len(latents), latents.shape[1], latents.dtype, mask)
    return Inputs((), named | {"encoder_hidden_states": sequence})


CHROMA = Family(
    name="Chroma",
    pipeline="ChromaPipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None, "prompt_attention_mask"),
    inputs=_inputs_chroma,
    schedulers=FLOW_SHIFTED,
    guidance="classifier-free, a second pass",
    guidance_batched=False,
    default_size=FLUX.default_size,
    multiple=FLUX.multiple,
    noise_shape=noise_shape,
    pack=pack,
    latents_are_map=False,
    rounds=True,
    to_denoiser=packed,
    to_vae=unpacked,
    steps=lambda pipe, steps, size: linear_sigmas(pipe, steps, patches(pipe, size)),
    encoding=frozenset({"max_sequence_length"}),
)
