"""Anisotropy: norm of the score difference at the highest noise level, plus its cosine to the score at the lowest.

arXiv 2601.20642 (ICLR 2026). From pure noise x_T alone, without denoising it:
``M = gamma_1 * cos(s_delta, s_empty) at t = 0  +  gamma_2 * ||s_delta|| at t = T``, with the score difference
``s_delta = s(x, c) - s(x, empty)``. Two pairs of forward passes: the cheapest of the published detectors.

Where we differ: the norm is the noise difference's (``||eps_delta||``), the same up to the factor sqrt(1 - abar_T),
which is 1 at t = T. The cosine is one of noise too: s is -eps times one positive number for both, so the cosines are
equal. Both gammas are 1, as published; they balance a number in [-1, 1] with an unbounded one, so a fit on labelled
captions (`memorization.detection.calibrate`) may choose better ones. Of a flow model the noise of the cosine is
``eps = x_t + (1 - sigma) v`` and the norm is the velocity difference's, ``||v_c - v_empty||`` at sigma near 1: there
the noise difference itself is ``(1 - sigma)`` of it and vanishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.parameterization import is_flow
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import (
    DenoiserBatch,
    epsilon,
    in_batches,
    noise_or_output,
    norms,
    predicted,
    timesteps,
)
from memorization.text_embeddings import Embedded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling


def anisotropy(
    late: Tensor, late_empty: Tensor, early: Tensor, early_empty: Tensor, *, gammas: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """``gamma_1 * cos(late - late_empty, late_empty) + gamma_2 * ||early - early_empty||``.

    Args:
        late: (B, ...) noise predicted for the caption at the lowest noise level, ``late_empty`` for the empty one.
        early: (B, ...) the same at the highest noise level, with ``early_empty``.

    Returns:
        (B,) float32; higher = more likely memorized.
    """
    aligned = torch.nn.functional.cosine_similarity(
        (late.float() - late_empty.float()).flatten(1), late_empty.float().flatten(1), dim=1
    )
    return gammas[0] * aligned + gammas[1] * norms(early.float() - early_empty.float())


class Anisotropy:
    """:func:`anisotropy` of the model's own predictions at pure noise.

    Args:
        gammas: weights of cosine and norm.
        lowest: training timestep that stands for t = 0.
    """

    name = "anisotropy"
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"unconditional"})

    def __init__(self, gammas: tuple[float, float] = (1.0, 1.0), lowest: int = 1) -> None:
        self.gammas, self.lowest = gammas, lowest

    @torch.no_grad()
    def scores(
        self,
        pipe: DiffusionPipeline,
        prompt_embeds: Embedded,
        negative_prompt_embeds: Embedded,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """See :class:`memorization.detection.base.Detector`."""
        highest = timesteps(pipe, sampling)[0]

        def score(batch: DenoiserBatch) -> Tensor:
            at_top = predicted if is_flow(pipe.scheduler) else noise_or_output
            parts = [
                predict(pipe, batch.latents, step, embeds, sampling.size)
                for predict, step in ((epsilon, self.lowest), (at_top, highest))
                for embeds in (batch.conditional, batch.unconditional)
            ]
            return anisotropy(*parts, gammas=self.gammas)

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling, score)

    def cost(self, sampling: Sampling) -> float:
        """Four forward passes."""
        return 4.0
