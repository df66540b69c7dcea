"""Entropy of cross-attention: the distribution over tokens differs between memorized and other captions.

Ren et al., "Unveiling and Mitigating Memorization in Text-to-image Diffusion Models through Cross Attention"
(ECCV 2024). Attention probabilities, averaged over heads and space, are a distribution over tokens; two
detectors take its entropy:

- one step ("LE"): the entropy of layer 3 at step 0, after a single denoiser call.
- whole trajectory ("AE"): the mean entropy over the last fifth of the steps, plus by how much the part of it that
  the end and padding tokens contribute has risen since the first step.

Where we differ: layers are counted from 0 in the order of execution, and AE takes the mean over all of them. The rise
is signed, as in the authors' code; their paper takes its absolute value. Others found both weak on SD 1.4 (AUC 0.85
and 0.61); they are included for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memorization.detection.attention_maps import record_attention
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import DenoiserBatch
from memorization.detection.generation_detector import Finish, GenerationDetector, end_positions, require_scores

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling

LATE = 0.2  # the authors' steps 40 to 49 of 50


def token_entropy(distribution: Tensor) -> Tensor:
    """Entropy in nats over the last dimension, each token's part: (..., L) probabilities to (..., L), >= 0."""
    distribution = distribution.float()
    return -torch.xlogy(distribution, distribution)


def attention_entropy(distributions: Tensor, ends: Tensor) -> Tensor:
    """The score over a whole trajectory.

    Args:
        distributions: (T, K, B, L) probabilities over tokens at every step and layer, each summing to 1.
        ends: (B,) position of the end token; it and what follows (the padding) are the summary tokens.

    Returns:
        (B,) float32; higher = more likely memorized.
    """
    parts = token_entropy(distributions).mean(1)  # (T, B, L)
    late = max(1, round(LATE * len(parts)))
    is_summary = torch.arange(parts.shape[-1], device=parts.device) >= ends.to(parts.device)[:, None]
    summary = (parts * is_summary).sum(-1)
    rise = summary[-late:].mean(0) - summary[0]
    return parts.sum(-1)[-late:].mean(0) + rise


class OneStepAttentionEntropy(GenerationDetector):
    """Entropy of one layer's attention at the first step.

    Args:
        layer: index in the order of execution.
    """

    name = "attention_entropy_one_step"
    needs: frozenset[Need] = frozenset({"attention"})

    def __init__(self, layer: int = 3) -> None:
        super().__init__(steps=1)
        self.layer = layer

    @contextmanager
    def record(self, pipe: DiffusionPipeline) -> Iterator[list[Tensor]]:
        """Record the pipeline's own calls; the list is filled when the block ends."""
        attention: list[Tensor] = []
        with record_attention(pipe, lambda index, p: p.mean(1) if index == self.layer else None) as calls:
            yield attention
        attention.extend(layer for call in calls for layer in call)

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores, higher = more likely memorized; None where the layer does not exist."""
        return token_entropy(recorded[0]).sum(-1).cpu() if recorded else None

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        with self.record(pipe) as attention:
            yield lambda _latents: require_scores(self.name, self.score(attention))


class AttentionEntropy(GenerationDetector):
    """:func:`attention_entropy` of a generation."""

    name = "attention_entropy"
    needs: frozenset[Need] = frozenset({"attention", "end_token", "trajectory"})

    def __init__(self) -> None:
        super().__init__()

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        positions = end_positions(self.name, ends, batch)
        with record_attention(pipe, lambda _index, p: p.mean(1)) as calls:
            yield lambda _latents: attention_entropy(torch.stack([torch.stack(call) for call in calls]), positions)
