"""Families with a U-Net: Stable Diffusion 1 and 2, SDXL, each alone or with ControlNet, and Kolors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from diffkit.families.base import Autoencoder, Call, Family, Inputs, Pipeline, Size, scaled, unscaled

__all__ = ["KOLORS", "SDXL", "SDXL_CONTROLNET", "STABLE_DIFFUSION", "STABLE_DIFFUSION_CONTROLNET"]


def _guided(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
    """Not where a distilled U-Net is told the scale."""
    return guidance_scale > 1 and pipe.unet.config.time_cond_proj_dim is None


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    return Inputs((call.latents, call.timesteps), {"encoder_hidden_states": call.embeds.prompt_embeds})


STABLE_DIFFUSION = Family(
    name="Stable Diffusion 1/2",
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    encoded=("prompt_embeds",),
    inputs=_inputs,
    guided=_guided,
    sides_together=True,
    text_attention=True,
    end_token="tokenizer",
    image_prompts=True,
    encoding=frozenset({"clip_skip"}),
)


def _inputs_xl(pipe: Pipeline, call: Call) -> Inputs:
    """With the pooled text and the six numbers of size and crop, uncropped."""
    positional, named = _inputs(pipe, call)
    pooled = call.embeds.companions["pooled_prompt_embeds"]
    dtype = call.embeds.prompt_embeds.dtype
    ids = pipe._get_add_time_ids(tuple(call.size), (0, 0), tuple(call.size), dtype, pooled.shape[-1])
    ids = ids.to(call.latents.device).repeat(len(call.latents), 1)
    return Inputs(positional, {**named, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}})


def _moments(vae: Autoencoder, latents: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each channel, where the VAE knows them (playground-v2.5)."""
    mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or deviation is None:
        return None
    mean, deviation = (torch.tensor(value).view(1, 4, 1, 1).to(latents) for value in (mean, deviation))
    return mean, deviation


def _to_denoiser_xl(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    moments = _moments(vae, latents)
    normal = latents if moments is None else (latents - moments[0]) / moments[1]
    result: Tensor = normal * vae.config.scaling_factor
    return result


def _to_vae_xl(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    moments, scale = _moments(vae, latents), vae.config.scaling_factor
    result: Tensor = latents / scale if moments is None else latents * moments[1] / scale + moments[0]
    return result


def _calls_xl(pipe: Pipeline, options: Mapping[str, object], timesteps: Tensor) -> int:
    """Those above the timestep of ``denoising_end``, by the expression of the pipeline's own."""
    end, trained = options.get("denoising_end"), pipe.scheduler.config.num_train_timesteps
    if not isinstance(end, float) or not 0 < end < 1:
        return len(timesteps)
    cutoff = round(trained - (end * trained))
    return len([timestep for timestep in timesteps if timestep >= cutoff])


def _part_xl(options: Mapping[str, object], start: int, stop: int | None, steps: int) -> Mapping[str, object]:
    """A call that jumps ahead goes to the clean latents."""
    return options if stop is not None else {name: options[name] for name in options if name != "denoising_end"}


def _mixed_rows_xl(options: Mapping[str, object]) -> str | None:
    """The pipeline repeats the pair of a negative and a positive row, where the batch has all negatives first."""
    names = ("negative_original_size", "negative_target_size")
    return " and ".join(names) if all(options.get(name) is not None for name in names) else None


SDXL = Family(
    name="SDXL",
    pipeline="StableDiffusionXLPipeline",
    denoiser="unet",
    encoded=("prompt_embeds", None, "pooled_prompt_embeds", None),
    inputs=_inputs_xl,
    guided=_guided,
    text_attention=True,
    end_token="tokenizer",
    image_prompts=True,
    to_denoiser=_to_denoiser_xl,
    to_vae=_to_vae_xl,
    encoding=frozenset({"clip_skip", "prompt_2", "negative_prompt_2"}),
    spare_encoders=frozenset({"text_encoder"}),
    zeros_for_none=True,
    upcasts=True,
    calls=_calls_xl,
    part=_part_xl,
    mixed_rows=_mixed_rows_xl,
)


# Its pipeline encodes 256 tokens whatever max_sequence_length says.
KOLORS = replace(
    SDXL,
    name="Kolors",
    pipeline="KolorsPipeline",
    text_attention=False,
    end_token=None,
    to_denoiser=scaled,
    to_vae=unscaled,
    encoding=frozenset(),
    spare_encoders=frozenset(),
    zeros_for_none=False,
    image_prompts=False,
)


def _whole_only_control(pipe: Pipeline, options: Mapping[str, object]) -> str | None:
    whole = {"control_guidance_start": 0.0, "control_guidance_end": 1.0}
    listed = {name: options.get(name, value) for name, value in whole.items()}
    if any(
        value != whole[name] and (not isinstance(value, list) or set(value) != {whole[name]})
        for name, value in listed.items()
    ):
        return (
            "a ControlNet that works for a part of the steps counts the loop's own; leave control_guidance_start at 0 "
            "and control_guidance_end at 1"
        )
    return None


# Attacks, detectors and training call the U-Net without the ControlNet; a search runs both.
STABLE_DIFFUSION_CONTROLNET = replace(
    STABLE_DIFFUSION,
    name="Stable Diffusion 1/2 with ControlNet",
    pipeline="StableDiffusionControlNetPipeline",
    sides_together=False,
    control="image",
    text_attention=False,
    end_token=None,
    whole_only=_whole_only_control,
    refused="in a schedule: control_guidance_start and _end other than 0 and 1",
)
SDXL_CONTROLNET = replace(
    SDXL,
    name="SDXL with ControlNet",
    pipeline="StableDiffusionXLControlNetPipeline",
    control="image",
    text_attention=False,
    end_token=None,
    whole_only=_whole_only_control,
    refused="in a schedule: control_guidance_start and _end other than 0 and 1",
)
