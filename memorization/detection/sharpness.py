"""Sharpness: the derivative of the score difference along itself, at the first step.

arXiv 2412.04140 (ICML 2025), the detector of the SAIL paper: ``|| H_delta s_delta ||_2`` at x_T and the first timestep,
where ``s = -eps / sqrt(1 - abar)``, ``s_delta = s(x, c) - s(x, empty)`` and ``H_delta`` is the difference of the two
scores' Jacobians (the Hessians of the log-densities). One Jacobian-vector product along s_delta; mean over seeds.

Where we differ: the product is forward-mode in float32 under the plain ("math") attention kernel, since the fused ones
have no forward derivative; the pipeline's modules are neither patched nor cast, and a half-precision model is
accepted: a product that is not finite becomes NaN. Of a flow model the score difference is
``-(1 - sigma) / sigma`` times the velocity's and vanishes at the first step, so that velocities take the scores' place:
``|| (J_c - J_empty) (v_c - v_empty) ||_2``. So they do for a model of zero terminal SNR that predicts v.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffkit.parameterization import coefficients, is_flow
from diffkit.prompt_embeds import Embeds
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import (
    DenoiserBatch,
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


def sharpness(conditional: Callable[[Tensor], Tensor], unconditional: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``|| (J_c - J_empty) s_delta ||_2`` at x, with ``s_delta = conditional(x) - unconditional(x)`` held fixed.

    Args:
        conditional: the score for the caption, (B, ...) to (B, ...), each row on its own; ``unconditional``: without.
        x: (B, ...) point of evaluation.

    Returns:
        (B,) float32, >= 0; higher = more likely memorized.
    """

    def difference(at: Tensor) -> Tensor:
        return conditional(at) - unconditional(at)

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        direction = difference(x).to(x.dtype)
        product: Tensor = torch.func.jvp(difference, (x,), (direction,))[1]
    return norms(product)


class Sharpness:
    """:func:`sharpness` of the model's score at pure noise and the first timestep.

    Args:
        at: share of the way from the noisiest timestep (0.0, as published) to the cleanest (1.0).
    """

    name = "sharpness"
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"gradient", "noise_level", "unconditional"})

    def __init__(self, at: float = 0.0) -> None:
        self.at = at

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
        steps = timesteps(pipe, sampling)
        step = steps[min(int(self.at * len(steps)), len(steps) - 1)]

        def score_at(x: Tensor, embeds: Embeds) -> Tensor:
            if is_flow(pipe.scheduler):
                return predicted(pipe, x, step, embeds, sampling.size).float()
            scale = -1 / float(coefficients(pipe.scheduler, step).noise)
            score: Tensor = noise_or_output(pipe, x, step, embeds, sampling.size) * scale
            return score

        def score(batch: DenoiserBatch) -> Tensor:
            return sharpness(
                lambda x: score_at(x, batch.conditional), lambda x: score_at(x, batch.unconditional), batch.latents
            )

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling, score)

    def cost(self, sampling: Sampling) -> float:
        """A pair of passes for the direction, and a pair with its forward derivative at twice the cost."""
        return 6.0
