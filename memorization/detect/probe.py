"""What detectors ask the denoiser directly, without a generation: the predicted noise at a latent and a timestep.

Everything is turned into noise (epsilon) first, so that a detector gives the same figure whatever the network
predicts; the score of the noised distribution is then ``s = -eps / sqrt(1 - abar)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffkit.conditioning import predict_noise
from diffkit.errors import ScoringError
from diffkit.families import Pipeline, Scheduler
from diffkit.seeds import generators

if TYPE_CHECKING:
    from memorization.generate import Sampling


class Batch(NamedTuple):
    """One constant-size batch of rows for the denoiser; only the first ``real`` rows count, the rest is filling."""

    latents: Tensor
    conditional: Tensor
    unconditional: Tensor
    seeds: tuple[int, ...]
    rows: tuple[int, ...]
    real: int


def batches(
    pipe: Pipeline, prompt_embeds: Tensor, negative_prompt_embeds: Tensor, seeds: Sequence[int], size: int
) -> Iterator[Batch]:
    """Cut rows into batches of ``size``, with the unit noise that the pipeline itself would start each seed from."""
    side = pipe.unet.config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    for first in range(0, len(seeds), size):
        real = min(size, len(seeds) - first)
        rows = tuple(first + min(i, real - 1) for i in range(size))
        embeds = prompt_embeds[list(rows)].to(pipe.device, pipe.dtype)
        negative = negative_prompt_embeds.to(embeds).expand(size, -1, -1)
        chosen = tuple(seeds[row] for row in rows)
        shape = (size, pipe.unet.config.in_channels, height, width)
        noise = randn_tensor(shape, generator=generators(chosen), device=pipe.device, dtype=pipe.dtype)
        yield Batch(noise, embeds, negative, chosen, rows, real)


def in_batches(
    pipe: Pipeline,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    seeds: Sequence[int],
    size: int,
    score: Callable[[Batch], Tensor],
) -> Tensor:
    """(n,) scores from a function that scores one batch."""
    parts = [
        score(batch)[: batch.real].detach().float().cpu()
        for batch in batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, size)
    ]
    return torch.cat(parts)


def alpha_bar(scheduler: Scheduler, timestep: int | Tensor) -> float:
    """Cumulative signal share in (0, 1) at a training timestep.

    Raises:
        ScoringError: the scheduler keeps none (flow matching).
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise ScoringError(f"{type(scheduler).__name__} keeps no alphas_cumprod; use a DDIM-like scheduler")
    return float(table[int(torch.as_tensor(timestep).flatten()[0].round())])


def timesteps(pipe: Pipeline, sampling: Sampling) -> list[int]:
    """The training timesteps of the generation that is judged, the noisiest first; the pipeline is left untouched."""
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(sampling.num_inference_steps)
    return [round(float(step)) for step in scheduler.timesteps]


def epsilon(pipe: Pipeline, latents: Tensor, timestep: int, embeds: Tensor) -> Tensor:
    """(B, C, h, w) float32 predicted noise, unguided; differentiable in latents and embeddings.

    Args:
        latents: (B, C, h, w), alpha-bar weighted as DDIM's are, at ``timestep``.
        embeds: (B, L, D).
    """
    output = predict_noise(pipe, latents, torch.tensor(timestep, device=latents.device), embeds)
    return as_noise(pipe.scheduler, output, latents, timestep)


def as_noise(scheduler: Scheduler, output: Tensor, latents: Tensor, timestep: int | Tensor) -> Tensor:
    """The network's output as predicted noise, float32, whatever it predicts."""
    kind = scheduler.config.prediction_type
    output, latents = output.float(), latents.float()
    if kind == "epsilon":
        return output
    signal = alpha_bar(scheduler, timestep)
    if kind == "v_prediction":
        return float(signal**0.5) * output + float((1 - signal) ** 0.5) * latents
    if kind == "sample":
        return (latents - float(signal**0.5) * output) / float((1 - signal) ** 0.5)
    raise ScoringError(f"prediction type {kind!r} is unknown; expected epsilon, v_prediction or sample")


def norms(x: Tensor) -> Tensor:
    """(B,) float32 L2 norms over all elements of a sample, >= 0."""
    found: Tensor = torch.linalg.vector_norm(x.float().flatten(1), dim=1)
    return found
