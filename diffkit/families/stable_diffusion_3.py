"""Stable Diffusion 3 and 3.5: a joint-attention transformer with flow matching, three text encoders."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sized
from typing import cast

from diffkit.families.base import FLOW, Call, Family, Inputs, Pipeline, Size, shifted, stock_default, unshifted
from diffkit.families.flow import shift_of_tokens

__all__ = ["STABLE_DIFFUSION_3"]


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    return Inputs(
        (),
        {
            "hidden_states": call.latents,
            "timestep": call.each_timestep(),
            "encoder_hidden_states": call.embeds.prompt_embeds,
            "pooled_projections": call.embeds.companions["pooled_prompt_embeds"],
        },
    )


def _steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    if not pipe.scheduler.config.get("use_dynamic_shifting"):
        return {"num_inference_steps": steps}
    cell = pipe.vae_scale_factor * pipe.transformer.config.patch_size
    tokens = (size.height // cell) * (size.width // cell)
    return {"num_inference_steps": steps, "mu": shift_of_tokens(pipe, tokens, max_shift=1.16)}


def _refusals(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    if options.get("mu") is not None:
        return "the noise levels are planned with the model's own shift; leave out mu"
    return None


def _part(options: Mapping[str, object], start: int, stop: int | None, steps: int) -> Mapping[str, object]:
    """Skip-layer guidance in the steps in which the whole call has it: those between two shares of their number."""
    if options.get("skip_guidance_layers") is None:
        return options
    if stop is None:
        return {name: value for name, value in options.items() if not name.startswith("skip_")}
    default = functools.partial(stock_default, STABLE_DIFFUSION_3)
    above, below = (
        cast("float", options.get(f"skip_layer_guidance_{name}", default(f"skip_layer_guidance_{name}")))
        for name in ("start", "stop")
    )
    listed = options.get("sigmas")
    whole, shown = (steps, steps) if listed is None else (len(cast("Sized", listed)), stop - start)
    guided = [step - start for step in range(start, stop) if whole * above < step < whole * below]
    shares = (guided[0] - 0.5, guided[-1] + 0.5) if guided else (0.0, 0.0)  # halfway between steps
    names = ("skip_layer_guidance_start", "skip_layer_guidance_stop")
    return {**options, **dict(zip(names, (share / shown for share in shares), strict=True))}


STABLE_DIFFUSION_3 = Family(
    name="Stable Diffusion 3/3.5",
    pipeline="StableDiffusion3Pipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None, "pooled_prompt_embeds", None),
    inputs=_inputs,
    schedulers=FLOW,
    text_attention=True,
    multiple=lambda pipe: int(pipe.vae_scale_factor * pipe.patch_size),
    to_denoiser=shifted,
    to_vae=unshifted,
    steps=_steps,
    encoding=frozenset(
        {"clip_skip", "max_sequence_length", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"}
    ),
    spare_encoders=frozenset({"text_encoder_3"}),
    part=_part,
    refusals=_refusals,
    refused="mu",
)
