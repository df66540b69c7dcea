"""How the noise of an image came about, when it is more than one seed: enough to make the image again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.families import Pipeline, family_of
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment

__all__ = ["Recipe", "mix", "replay"]


@dataclass(frozen=True)
class Recipe:
    """Where the initial noise and the noise of a stochastic sampler come from.

    Attributes:
        seeds: the first draws the initial noise; each later one draws fresh noise that is mixed in, see :func:`mix`.
            The generator of the last seed goes on to serve the sampler.
        distance: how far each mixing goes, in (0, 1].
        reseeded: pairs (call, seed): from that denoiser call on the sampler's noise comes from that seed.
    """

    seeds: tuple[int, ...]
    distance: float = 0.0
    reseeded: tuple[tuple[int, int], ...] = ()

    def noise(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, torch.Generator]:
        """The initial noise (1, C, h, w), standard normal, and the generator that goes on from there."""
        sources = generators(self.seeds)
        drawn = [torch.randn(shape, generator=source, dtype=dtype) for source in sources]
        noise = drawn[0]
        for fresh in drawn[1:]:
            noise = mix(noise, fresh, self.distance)
        return noise, sources[-1]

    def to_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {
            "seeds": list(self.seeds),
            "distance": self.distance,
            "reseeded": [list(change) for change in self.reseeded],
        }


def mix(noise: Tensor, fresh: Tensor, distance: float) -> Tensor:
    """A neighbour of standard normal ``noise``, itself standard normal: sqrt(1 - d^2) noise + d fresh.

    Its correlation with ``noise`` is sqrt(1 - d^2): distance 0 is the noise itself, 1 is all fresh.
    """
    return noise * math.sqrt(1 - distance**2) + fresh * distance


def replay(
    recipe: Recipe,
    pipe: Pipeline,
    conditioning: Conditioning,
    denoising: Denoising,
    shape: tuple[int, ...],
    calls: int,
    call: Callable[..., Any] | None = None,
) -> Candidate:
    """The finished candidate of a recipe, for the first prompt of ``conditioning``.

    Args:
        shape: of one candidate's noise before any packing, (1, C, h, w).
        calls: denoiser calls of the whole denoising.
        call: runs the stock pipeline, ``pipe`` itself by default.
    """
    family = family_of(pipe)
    noise, generator = recipe.noise(shape, family.noise_dtype or conditioning.prompt_embeds.dtype)
    candidate = Candidate(0, 0, generator, recipe.seeds[0], latents=family.pack(pipe, noise))
    bounds = [0, *(step for step, _ in recipe.reseeded), calls]
    sources = [None, *generators(seed for _, seed in recipe.reseeded)]
    for start, stop, source in zip(bounds, bounds[1:], sources, strict=False):
        if source is not None:
            candidate = replace(candidate, generator=source)
        [candidate] = run_segment(pipe, [candidate], conditioning, denoising, start, stop, call=call)
    return candidate
