"""Direct calls of the denoiser, without a generation: the predicted noise at a latent and a timestep.

Everything is turned into noise (epsilon) first, so that a detector gives the same figure whatever the network
predicts; the score of the noised distribution is then ``s = -eps / sqrt(1 - abar)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.families import Pipeline
from diffkit.parameterization import is_flow, is_silent, predicted_noise
from diffkit.prompt_embeds import Embeds
from diffkit.sampling_steps import spaced
from diffkit.seeds import generators
from memorization.text_embeddings import Embedded, as_embeds

if TYPE_CHECKING:
    from memorization.generation import Sampling


class DenoiserBatch(NamedTuple):
    """One constant-size batch of rows for the denoiser; the rows after the first ``real`` are padding."""

    latents: Tensor
    conditional: Embeds
    unconditional: Embeds
    seeds: tuple[int, ...]
    rows: tuple[int, ...]
    real: int


def batches(
    pipe: Pipeline,
    prompt_embeds: Embedded,
    negative_prompt_embeds: Embedded,
    seeds: Sequence[int],
    sampling: Sampling,
) -> Iterator[DenoiserBatch]:
    """Cut rows into batches, with the unit noise that the pipeline itself would start each seed from."""
    size = sampling.micro_batch
    embeds = as_embeds(prompt_embeds)
    negative = as_embeds(negative_prompt_embeds).to(pipe.device, pipe.dtype).expand(size)
    for first in range(0, len(seeds), size):
        real = min(size, len(seeds) - first)
        rows = tuple(first + min(i, real - 1) for i in range(size))
        chosen = tuple(seeds[row] for row in rows)
        noise = initial_latents(pipe, generators(chosen), sampling.size, dtype=pipe.dtype)
        yield DenoiserBatch(noise, embeds.rows(rows).to(pipe.device, pipe.dtype), negative, chosen, rows, real)


def in_batches(
    pipe: Pipeline,
    prompt_embeds: Embedded,
    negative_prompt_embeds: Embedded,
    seeds: Sequence[int],
    sampling: Sampling,
    score: Callable[[DenoiserBatch], Tensor],
) -> Tensor:
    """(n,) scores from a function that scores one batch."""
    parts = [
        score(batch)[: batch.real].detach().float().cpu()
        for batch in batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling)
    ]
    return torch.cat(parts)


def timesteps(pipe: Pipeline, sampling: Sampling) -> list[float]:
    """The training timesteps of the generation that is judged, the noisiest first; the pipeline does not change.

    Whole numbers, except for flow models.
    """
    scheduler = spaced(pipe, sampling.num_inference_steps, sampling.size)
    steps = [float(step) for step in scheduler.timesteps]
    return steps if is_flow(scheduler) else [float(round(step)) for step in steps]


def predicted(
    pipe: Pipeline, latents: Tensor, timestep: float, embeds: Embeds, size: tuple[int, int] | None = None
) -> Tensor:
    """The denoiser's output shaped as the latents, unguided; differentiable in latents and embeddings.

    Args:
        latents: (B, C, h, w) or packed, alpha-bar weighted as DDIM's are, at ``timestep``.
        embeds: B rows.
        size: (height, width) in pixels of packed latents.
    """
    at = torch.tensor(float(timestep) if is_flow(pipe.scheduler) else round(timestep), device=latents.device)
    return predict_noise(pipe, latents, at, embeds, size=size)


def epsilon(
    pipe: Pipeline, latents: Tensor, timestep: float, embeds: Embeds, size: tuple[int, int] | None = None
) -> Tensor:
    """:func:`predicted` as noise, float32, whatever the network predicts."""
    return predicted_noise(pipe.scheduler, predicted(pipe, latents, timestep, embeds, size), latents, timestep)


def noise_or_output(
    pipe: Pipeline, latents: Tensor, timestep: float, embeds: Embeds, size: tuple[int, int] | None = None
) -> Tensor:
    """:func:`epsilon`, or :func:`predicted` in float32 where the noise says nothing of the caption.

    That is the case at pure noise, where flow models and models of zero terminal SNR begin, unless the network predicts
    epsilon itself: a difference of two noises would be 0 for every caption.
    """
    if is_silent(pipe.scheduler, timestep):
        return predicted(pipe, latents, timestep, embeds, size).float()
    return epsilon(pipe, latents, timestep, embeds, size)


def norms(x: Tensor) -> Tensor:
    """(B,) float32 L2 norms over all elements of a sample, >= 0."""
    lengths: Tensor = torch.linalg.vector_norm(x.float().flatten(1), dim=1)
    return lengths
