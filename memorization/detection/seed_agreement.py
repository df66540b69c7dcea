"""Seed agreement: a memorized caption gives the same image from every noise.

The observation behind the extraction attack of Carlini et al., "Extracting Training Data from Diffusion Models"
(USENIX Security 2023, arXiv 2301.13188), which generates a caption many times and looks for near-identical images.
Here it is a score of a caption alone: minus the root-mean-square difference between the final latents of two
generations. Latents of a Stable Diffusion have a variance of about 1, so that unrelated images lie near -1.4 and equal
ones at 0. The only one of our detectors that compares generated images. A caption with a strong effect on the
prediction but different images is not flagged; one that always gives the same plain image is. Final
latents are compared as the pipeline has them, packed or not, of diffusion and of flow models alike.

Where we differ: plain L2 between latents, not the maximum over tiles between pixels; pairs, not cliques of ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.seeds import item_seed
from memorization.detection.denoiser_queries import DenoiserBatch
from memorization.detection.generation_detector import Finish, GenerationDetector, denoise

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling


def agreement(latents: Tensor) -> Tensor:
    """Minus the root-mean-square difference between the generations of a row, mean over pairs.

    Args:
        latents: (K, B, ...) final latents of K >= 2 generations of every row.

    Returns:
        (B,) float32, <= 0; 0 = all the same; higher = more likely memorized.
    """
    flat = latents.float().flatten(2)
    distances = [(flat[i] - flat[j]).square().mean(1).sqrt() for i, j in combinations(range(len(flat)), 2)]
    return -torch.stack(distances).mean(0)


class SeedAgreement(GenerationDetector):
    """:func:`agreement` of generations from a row's own seed and from others that follow from it.

    Args:
        generations: images for each row, at least 2.

    Raises:
        InputError: fewer than two.
    """

    name = "seed_agreement"

    def __init__(self, generations: int = 2) -> None:
        if generations < 2:
            raise InputError(f"Seed agreement compares at least 2 generations, got {generations}.")
        super().__init__()
        self.generations = generations

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""

        def finish(latents: Tensor) -> Tensor:
            generations = [latents]
            for other in range(1, self.generations):
                partners = tuple(item_seed(seed, "", "seed agreement", other) for seed in batch.seeds)
                generations.append(denoise(pipe, batch._replace(seeds=partners), sampling))
            return agreement(torch.stack(generations))

        yield finish

    def cost(self, sampling: Sampling) -> float:
        """That many generations."""
        return self.generations * super().cost(sampling)
