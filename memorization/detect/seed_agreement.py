"""Seed agreement: a memorized caption draws the same image from any noise.

The observation behind the extraction attack of Carlini et al., "Extracting Training Data from Diffusion Models"
(USENIX Security 2023, arXiv 2301.13188), which generates a caption many times and looks for near-identical images.
Here it is a score of a caption alone: minus the root-mean-square difference between the final latents of two
generations. Latents of a Stable Diffusion have a variance of about 1, so that unrelated images lie near -1.4 and equal
ones at 0. The only one of our detectors that looks at what comes out instead of how hard the caption pulls, so a
caption that steers hard into ever new images does not fool it; one that steers into the same plain image does.

Where we differ: plain L2 between latents, not the maximum over tiles between pixels; pairs, not cliques of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.detect import Need
from memorization.detect.listening import denoise
from memorization.detect.probe import Batch, in_batches
from memorization.generate import item_seed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generate import Sampling


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


class SeedAgreement:
    """:func:`agreement` of generations from a row's own seed and from others that follow from it.

    Args:
        generations: images for each row, at least 2.

    Raises:
        InputError: fewer than two.
    """

    name = "seed_agreement"
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"trajectory"})

    def __init__(self, generations: int = 2) -> None:
        if generations < 2:
            raise InputError(f"Seed agreement compares at least 2 generations, got {generations}.")
        self.generations = generations

    def scores(
        self,
        pipe: DiffusionPipeline,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """See :class:`memorization.detect.Detector`."""

        def score(batch: Batch) -> Tensor:
            made = [denoise(pipe, batch, sampling)]
            for other in range(1, self.generations):
                partners = tuple(item_seed(seed, "", "seed agreement", other) for seed in batch.seeds)
                made.append(denoise(pipe, batch._replace(seeds=partners), sampling))
            return agreement(torch.stack(made))

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling.micro_batch, score)

    def cost(self, sampling: Sampling) -> float:
        """That many generations."""
        guided = 2.0 if sampling.guidance_scale > 1 else 1.0
        return self.generations * guided * sampling.num_inference_steps
