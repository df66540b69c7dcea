"""Several rewards at once: one utility for each candidate, compared with the others that are still in the search.

All functions take scores (..., m candidates, K rewards), higher is better, and return utilities (..., m), higher is
better. They depend on order or on units of spread only, since rewards differ in scale a hundredfold. A candidate with
a NaN in any reward gets minus infinity and does not count for the others. Ties stay ties: whoever sorts, sorts stably.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["COMBINE", "Combine", "mean_ranks", "pareto", "pareto_fronts", "rank_sum", "z_sum"]

Floats = NDArray[np.float64]
Combine = Literal["rank", "zscore", "pareto"]


def mean_ranks(values: Floats) -> Floats:
    """Ranks along the last axis from 1 (lowest); equal values share the mean of their ranks. No NaN.

    Args:
        values: (..., m); minus infinity is an ordinary lowest value.
    """
    size = values.shape[-1]
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    places = np.broadcast_to(np.arange(size), values.shape)
    new = np.ones(values.shape, dtype=bool)
    new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = np.maximum.accumulate(np.where(new, places, 0), axis=-1)
    ends = np.ones(values.shape, dtype=bool)
    ends[..., :-1] = new[..., 1:]
    backwards = np.where(ends, places, size - 1)[..., ::-1]
    last = np.minimum.accumulate(backwards, axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def _failed(scores: Floats) -> NDArray[np.bool_]:
    return np.asarray(np.isnan(scores).any(axis=-1))


def rank_sum(scores: Floats) -> Floats:
    """Sum over rewards of the mean rank among the candidates (1 is the lowest); TTSnap's rule with fair ties."""
    dead = _failed(scores)
    scores = np.where(dead[..., None], -np.inf, scores)
    ranks = mean_ranks(np.moveaxis(scores, -1, -2))
    return np.where(dead, -np.inf, ranks.sum(axis=-2))


def z_sum(scores: Floats) -> Floats:
    """Sum over rewards of the distance to the candidates' mean in standard deviations; constant rewards count 0."""
    dead = _failed(scores)[..., None]
    count = np.maximum((~dead).sum(axis=-2, keepdims=True), 1)
    mean = np.where(dead, 0.0, scores).sum(axis=-2, keepdims=True) / count
    away = np.where(dead, 0.0, scores - mean)
    spread = np.sqrt((away**2).sum(axis=-2, keepdims=True) / count)
    constant = spread <= 1e-12 * np.maximum(np.abs(mean), 1e-300)  # what floats leave of a spread of 0
    sums = np.divide(away, spread, out=np.zeros_like(away), where=np.broadcast_to(~constant, away.shape)).sum(axis=-1)
    return np.where(dead[..., 0], -np.inf, sums)


def pareto_fronts(scores: Floats) -> NDArray[np.int64]:
    """The front of each candidate (..., m): 0 is dominated by nobody, 1 only by front 0, and so on; -1 with a NaN.

    One candidate dominates another when it is nowhere worse and somewhere better, so equal ones share a front.
    """
    left = ~_failed(scores)
    row, column = scores[..., :, None, :], scores[..., None, :, :]
    dominates = (row >= column).all(axis=-1) & (row > column).any(axis=-1)  # (..., m by m): row over column
    fronts = np.full(scores.shape[:-1], -1, dtype=np.int64)
    front = 0
    while left.any():
        best = left & ~(dominates & left[..., :, None]).any(axis=-2)
        fronts[best] = front
        left &= ~best
        front += 1
    return fronts


def pareto(scores: Floats) -> Floats:
    """Fronts of non-domination first, the rank sum within a front."""
    fronts, ranks = pareto_fronts(scores), rank_sum(scores)
    step = scores.shape[-1] * scores.shape[-2] + 1.0  # more than any rank sum
    return np.where(fronts < 0, -np.inf, ranks - fronts * step)


COMBINE: Mapping[Any, Callable[[Floats], Floats]] = {"rank": rank_sum, "zscore": z_sum, "pareto": pareto}
