"""PixArt-Alpha, PixArt-Sigma and Sana: one T5 or Gemma encoder, sizes that may be moved to fixed shapes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffkit.families.base import FLOW_NOISY, Call, Family, Inputs, Pipeline, Size, scaled, unscaled

__all__ = ["PIXART_ALPHA", "PIXART_SIGMA", "SANA", "SANA_SPRINT"]

ENCODED = ("prompt_embeds", "prompt_attention_mask", None, None)


def _first_half(output: Any, call: Call) -> Tensor:
    """The prediction without the variances that a model may have learned beside it."""
    prediction: Tensor = output[0]
    return prediction.chunk(2, dim=1)[0] if prediction.shape[1] == 2 * call.latents.shape[1] else prediction


def _refuse_binning(pipe: Pipeline, options: Mapping[str, object], size: Size, bins: Mapping[int, str]) -> str | None:
    """The pipeline itself would denoise at another size, and resize the image."""
    if not options.get("use_resolution_binning", True):
        return None
    own = pipe.transformer.config.sample_size
    if own not in bins:
        return f"the pipeline knows no size bins for a sample_size of {own}; say use_resolution_binning=False"
    ratios = getattr(sys.modules[type(pipe).__mro__[0].__module__], bins[own], None)
    if ratios is None:
        from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
        from diffusers.pipelines.sana import pipeline_sana

        modules = (pipeline_sana, pipeline_pixart_sigma, pipeline_pixart_alpha)
        ratios = next(getattr(module, bins[own]) for module in modules if hasattr(module, bins[own]))
    binned = pipe.image_processor.classify_height_width_bin(size.height, size.width, ratios=ratios)
    if tuple(binned) == tuple(size):
        return None
    return (
        f"the pipeline would denoise at {binned[0]}x{binned[1]} and resize to {size.height}x{size.width}; ask for that "
        f"size, or say use_resolution_binning=False"
    )


def _inputs_pixart(pipe: Pipeline, call: Call) -> Inputs:
    named = {
        "encoder_hidden_states": call.embeds.prompt_embeds,
        "encoder_attention_mask": call.embeds.companions["prompt_attention_mask"],
        "timestep": call.each_timestep(),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return Inputs((call.latents,), named)


PIXART_BINS = {size: f"ASPECT_RATIO_{size * 8}_BIN" for size in (32, 64, 128, 256)}
PIXART_SIGMA = Family(
    name="PixArt-Sigma",
    pipeline="PixArtSigmaPipeline",
    denoiser="transformer",
    encoded=ENCODED,
    inputs=_inputs_pixart,
    output=_first_half,
    encoding=frozenset({"clean_caption", "max_sequence_length"}),
    fixed={"use_resolution_binning": False, "negative_prompt": None},
    refusals=lambda pipe, options, size: _refuse_binning(pipe, options, size, PIXART_BINS),
    refused="sizes that resolution binning would change",
)


def _inputs_alpha(pipe: Pipeline, call: Call) -> Inputs:
    """With the size and the aspect ratio, where the model was trained at 1024 pixels."""
    positional, named = _inputs_pixart(pipe, call)
    if pipe.transformer.config.sample_size != 128:
        return Inputs(positional, named)
    rows, like = len(call.latents), call.embeds.prompt_embeds
    conditions = {
        "resolution": torch.tensor([call.size.height, call.size.width]).repeat(rows, 1).to(like),
        "aspect_ratio": torch.tensor([call.size.height / call.size.width]).repeat(rows, 1).to(like),
    }
    return Inputs(positional, {**named, "added_cond_kwargs": conditions})


def _steps_alpha(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """Of a single step the pipeline takes the estimate that ``scheduler.step`` returns, which not every one does."""
    if steps == 1 and type(pipe.scheduler).__name__ in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        raise ValueError("the pipeline takes x0 from a single step, and this scheduler returns none; use DDIMScheduler")
    return {"num_inference_steps": steps}


PIXART_ALPHA = replace(
    PIXART_SIGMA, name="PixArt-Alpha", pipeline="PixArtAlphaPipeline", inputs=_inputs_alpha, steps=_steps_alpha
)


def _inputs_sana(pipe: Pipeline, call: Call) -> Inputs:
    dtype = pipe.transformer.dtype
    named = {
        "encoder_hidden_states": call.embeds.prompt_embeds.to(dtype),
        "encoder_attention_mask": call.embeds.companions["prompt_attention_mask"],
        "timestep": call.each_timestep() * pipe.transformer.config.timestep_scale,
    }
    return Inputs((call.latents.to(dtype),), named)


def _negative_of_sana(pipe: Pipeline, text: list[str] | None, options: Mapping[str, object]) -> tuple[Any, ...]:
    """Without the instruction that goes before a prompt."""
    keys = {name: options[name] for name in ("clean_caption", "max_sequence_length")}
    encoded = pipe.encode_prompt(text, False, device=pipe._execution_device, complex_human_instruction=None, **keys)
    return tuple(encoded)


SANA_BINS = {size: f"ASPECT_RATIO_{size * 32}_BIN" for size in (16, 32, 64, 128)}
SANA = Family(
    name="Sana",
    noise_dtype=torch.float32,
    pipeline="SanaPipeline",
    denoiser="transformer",
    encoded=ENCODED,
    inputs=_inputs_sana,
    schedulers=FLOW_NOISY,
    output=lambda output, call: _first_half(output, call).float(),
    default_size=lambda pipe: Size(1024, 1024),
    multiple=lambda pipe: 32,
    encoding=frozenset({"clean_caption", "max_sequence_length", "complex_human_instruction"}),
    encode_negative=_negative_of_sana,
    fixed={"use_resolution_binning": False, "negative_prompt": None},
    refusals=lambda pipe, options, size: _refuse_binning(pipe, options, size, SANA_BINS),
    refused="sizes that resolution binning would change",
)


def _time_of_sprint(call: Call) -> Tensor:
    """Time in [0, 1] of the flow that the denoiser knows, from the angle, one for each row: (B, 1, 1, 1)."""
    angle = call.each_timestep()
    return (torch.sin(angle) / (torch.cos(angle) + torch.sin(angle))).view(-1, 1, 1, 1)


def _latents_of_sprint(pipe: Pipeline, call: Call) -> Tensor:
    time = _time_of_sprint(call)
    scaled: Tensor = call.latents / pipe.scheduler.config.sigma_data * torch.sqrt(time**2 + (1 - time) ** 2)
    return scaled


def _inputs_sprint(pipe: Pipeline, call: Call) -> Inputs:
    dtype, embeds = pipe.transformer.dtype, call.embeds.prompt_embeds
    guidance = torch.full([1], call.guidance_scale, device=call.latents.device, dtype=torch.float32)
    named = {
        "encoder_hidden_states": embeds.to(dtype),
        "encoder_attention_mask": call.embeds.companions["prompt_attention_mask"],
        "guidance": guidance.expand(len(call.latents)).to(embeds.dtype) * pipe.transformer.config.guidance_embeds_scale,
        "timestep": _time_of_sprint(call).flatten(),
    }
    return Inputs((_latents_of_sprint(pipe, call).to(dtype),), named)


def _steps_sprint(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """The pipeline's own angle between both ends is for two steps; other numbers must do without one."""
    return {
        "num_inference_steps": steps,
        "max_timesteps": 1.57080,
        "intermediate_timesteps": 1.3 if steps == 2 else None,
    }


def _refuse_sprint(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    if options.get("timesteps") is not None:
        return "timesteps end with one that is no step; give num_inference_steps and intermediate_timesteps"
    sigma_data = pipe.scheduler.config.get("sigma_data")
    if sigma_data is None:
        return f"its loop runs no {type(pipe.scheduler).__name__}; set pipe.scheduler to an SCMScheduler"
    if math.frexp(sigma_data)[0] != 0.5:
        return "its sigma_data is no power of two, so that latents change when they are handed back"
    return _refuse_binning(pipe, options, size, {32: SANA_BINS[32]})


SANA_SPRINT = replace(
    SANA,
    name="Sana-Sprint",
    pipeline="SanaSprintPipeline",
    encoded=("prompt_embeds", "prompt_attention_mask"),
    inputs=_inputs_sprint,
    output=lambda output, call: output[0],
    schedulers=("SCMScheduler",),
    guided=lambda pipe, guidance_scale, options: False,
    guidance="told to the denoiser",
    pack=lambda pipe, latents: latents * pipe.scheduler.config.sigma_data,
    resumed=lambda pipe, latents, size: latents / pipe.scheduler.config.sigma_data,
    shown=lambda pipe, latents, size: latents / pipe.scheduler.config.sigma_data,
    to_denoiser=lambda pipe, latents, vae: scaled(pipe, latents, vae) * pipe.scheduler.config.sigma_data,
    to_vae=lambda pipe, latents, vae, size: unscaled(pipe, latents / pipe.scheduler.config.sigma_data, vae, size),
    steps=_steps_sprint,
    encode_negative=None,
    fixed={"use_resolution_binning": False},
    search_only="its timesteps are angles, which audits do not know",
    refusals=_refuse_sprint,
    refused="timesteps, sizes that resolution binning would change",
)
