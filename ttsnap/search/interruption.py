"""What a search has when it is stopped: finished images, and of each prompt the seeds that looked best so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from diffkit.segments import Candidate
from ttsnap.search.noise import Recipe
from ttsnap.search.trace import Winner

__all__ = ["Place", "Progress", "places", "with_gaps"]

Images = list[Image] | np.ndarray[Any, Any] | Tensor


class Place(NamedTuple):
    """One image that was asked for: the winner, or None where the search was stopped before; the seed that draws it."""

    winner: Winner | None
    seed: int | None


def places(winners: Sequence[Sequence[Winner]], leading: Sequence[Sequence[int]], count: int) -> list[Place]:
    """The images asked for, prompt by prompt; those that are missing have the prompt's best seeds so far, then None.

    Args:
        winners: of each prompt, at most ``count``.
        leading: of each prompt, where the search was stopped; no prompt has any where it was not.
    """
    listed: list[Place] = []
    for prompt, best in enumerate(winners):
        listed += [Place(winner, winner.candidate.seed) for winner in best]
        if leading:
            taken = {winner.candidate.seed for winner in best}
            seeds = [seed for seed in leading[prompt] if seed not in taken]
            missing = count - len(best)
            listed += [Place(None, seed) for seed in [*seeds, *[None] * missing][:missing]]
    return listed


def with_gaps(images: Images, listed: Sequence[Place], shape: tuple[int, ...]) -> list[Image | None] | Images:
    """Images with a gap in the place of each that is missing: None, or NaN in an array or tensor.

    Args:
        images: of the winners among the places.
        shape: of one of them, where it is an array or tensor.
    """
    rows = [row for row, place in enumerate(listed) if place.winner is not None]
    if len(rows) == len(listed):
        return images
    if isinstance(images, list):
        drawn = iter(images)
        return [None if place.winner is None else next(drawn) for place in listed]
    if isinstance(images, np.ndarray):
        array = np.full((len(listed), *shape), np.nan, images.dtype)
        array[rows] = images.reshape(len(rows), *shape)
        return array
    tensor = torch.full((len(listed), *shape), torch.nan, dtype=images.dtype, device=images.device)
    tensor[rows] = images.reshape(len(rows), *shape)
    return tensor


@dataclass
class Progress:
    """How far a search has come, kept up while it runs.

    Attributes:
        finished: prompt -> the best finished images so far, best first.
        unjudged: candidates that are denoised to the end and were not looked at yet.
        half_denoised: those of a stopped call that is the stock pipeline's own.
        recipes: (prompt, candidate) -> how its noise came about, where a seed alone does not say it.
    """

    finished: dict[int, list[Winner]] = field(default_factory=dict)
    unjudged: list[Candidate] = field(default_factory=list)
    half_denoised: list[Candidate] = field(default_factory=list)
    recipes: dict[tuple[int, int], Recipe] = field(default_factory=dict)
    _looked: dict[int, dict[int, tuple[int, float]]] = field(default_factory=dict)  # prompt -> seed -> step, score

    def begin(self, candidates: Sequence[Candidate]) -> None:
        """Note fresh candidates, of which nothing is known yet."""
        for candidate in candidates:
            self._note(candidate, 0, 0.0)

    def look(self, candidates: Sequence[Candidate], scores: Sequence[float], flagged: Sequence[bool]) -> None:
        """Note what candidates of one prompt scored; what the safety checker flags leads nobody."""
        for candidate, score, hidden in zip(candidates, scores, flagged, strict=True):
            if math.isfinite(score) and not hidden:
                self._note(candidate, candidate.step, score)

    def _note(self, candidate: Candidate, step: int, score: float) -> None:
        if candidate.seed is None or (candidate.prompt, candidate.index) in self.recipes:
            return  # no seed draws it
        looked = self._looked.setdefault(candidate.prompt, {})
        if step >= looked.get(candidate.seed, (-1, 0.0))[0]:
            looked[candidate.seed] = step, score

    def seeds(self, prompt: int, *, higher_is_better: bool = True) -> list[int]:
        """The prompt's seeds, the best so far first: those that came furthest, by their last scores.

        The stock pipeline draws each of them; one that only a recipe draws is not among them.
        """
        sign = -1.0 if higher_is_better else 1.0
        looked = self._looked.get(prompt, {})
        return sorted(looked, key=lambda seed: (-looked[seed][0], sign * looked[seed][1]))
