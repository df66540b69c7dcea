"""CogView4: flow matching with one GLM encoder, whose texts differ in length and are not masked."""

from __future__ import annotations

import numpy as np
import torch

from diffkit.families.base import FLOW, Call, Family, Inputs, Pipeline, Size
from diffkit.prompt_embeds import MASK

__all__ = ["COGVIEW4"]


def _inputs(pipe: Pipeline, call: Call) -> Inputs:
    """With the size and the crop; the pipeline gives no mask, for its texts have no fill."""
    sequence, mask = call.embeds.prompt_embeds, call.embeds.companions[MASK]
    size = torch.tensor([tuple(call.size)]).to(sequence).repeat(len(call.latents), 1)
    named = {
        "hidden_states": call.latents.to(pipe.transformer.dtype),
        "encoder_hidden_states": sequence,
        "timestep": call.each_timestep(),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros_like(size),
        "attention_mask": None if bool(mask.all()) else mask,
    }
    return Inputs((), named)


def _steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """Whole timesteps from the last to 1, shifted by the number of tokens."""
    from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift

    config, factor = pipe.scheduler.config, pipe.vae_scale_factor
    timesteps = np.linspace(config.num_train_timesteps, 1.0, steps).astype(np.int64).astype(np.float32)
    tokens = ((size.height // factor) * (size.width // factor)) // pipe.transformer.config.patch_size**2
    shifts = (config.get(key, default) for key, default in (("base_shift", 0.25), ("max_shift", 0.75)))
    mu = calculate_shift(tokens, config.get("base_image_seq_len", 256), *shifts)
    return {"timesteps": timesteps, "sigmas": timesteps / config.num_train_timesteps, "mu": mu}


COGVIEW4 = Family(
    name="CogView4",
    noise_dtype=torch.float32,
    pipeline="CogView4Pipeline",
    denoiser="transformer",
    encoded=("prompt_embeds", None),
    layout="alone",
    inputs=_inputs,
    schedulers=FLOW[:1],
    guidance="classifier-free, a second pass",
    guidance_batched=False,
    multiple=lambda pipe: 16,
    steps=_steps,
    encoding=frozenset({"max_sequence_length"}),
)
