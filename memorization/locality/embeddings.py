"""Distances between triggers, and displacements by an attack (pure functions on tensors).

A *displacement* is the difference between a trigger and its start, ``y - y0``. If an image had one place in embedding
space, displacements from different starts would all lead to it: triggers closer than their starts. If it had one
direction, displacements would be parallel (cosine 1) and span one dimension.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffkit.errors import InputError


def flat(embeddings: Tensor) -> Tensor:
    """(n, L, D) embeddings as (n, L * D) float64 rows.

    Raises:
        InputError: there is no axis to flatten.
    """
    if embeddings.ndim < 2:
        raise InputError(f"Expected a batch of embeddings, got shape {tuple(embeddings.shape)}.")
    return embeddings.detach().cpu().double().flatten(1)


def pairwise_distance(embeddings: Tensor) -> Tensor:
    """L2 distances of all pairs: (n, ...) to (n, n) float64, >= 0, zero on the diagonal."""
    rows = flat(embeddings)
    difference = rows[:, None] - rows[None]
    distances: Tensor = difference.norm(dim=-1)
    return distances


def gaussian_distance(dimensions: int, deviation: float = 1.0) -> float:
    """Expected distance of two independent N(0, deviation^2 I) points, approximately: ``deviation * sqrt(2 n)``.

    Exactly: the root of the mean squared distance. The mean distance itself is smaller by a factor 1 - 1 / (4 n).

    Args:
        dimensions: n, of the flattened embedding.
        deviation: of each coordinate.
    """
    return deviation * math.sqrt(2 * dimensions)


def pairwise_cosine(displacements: Tensor) -> Tensor:
    """Cosines of all pairs: (n, ...) to (n, n) float64 in [-1, 1]; NaN where a displacement is zero.

    Of independent random directions in N dimensions the mean is 0 and the deviation ``1 / sqrt(N)``.
    """
    rows = flat(displacements)
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines: Tensor = (unit @ unit.T).clamp(-1, 1)
    return cosines


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """(n,) float64 cosines of corresponding rows; NaN where either is zero."""
    a, b = flat(first), flat(second)
    cosines: Tensor = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
    return cosines


class Rank(NamedTuple):
    """Rank of some displacements.

    Attributes:
        numerical: singular values above ``max(n, N) * eps * largest`` (as numpy's matrix_rank counts, float32's eps).
        effective: exp of the entropy of the singular values' shares (Roy and Vetterli, "The effective rank", 2007); in
            [1, numerical]; 1 = one direction, n = all equally strong and orthogonal.
        first_share: the share of the sum of squares along the first direction, in (0, 1].
        n: displacements.
    """

    numerical: int
    effective: float
    first_share: float
    n: int


def rank(displacements: Tensor) -> Rank | None:
    """Rank of (n, ...) displacements as rows of a matrix, without centring; None where all are zero.

    Raises:
        InputError: no displacement, or a number that is not finite.
    """
    rows = flat(displacements)
    if not len(rows) or not bool(rows.isfinite().all()):
        raise InputError("Expected at least one displacement, all of them finite.")
    values = torch.linalg.svdvals(rows)
    if float(values[0]) == 0:
        return None
    tolerance = max(rows.shape) * torch.finfo(torch.float32).eps * values[0]
    shares = values / values.sum()
    entropy = -(shares * shares.clamp(min=torch.finfo(torch.float64).tiny).log()).sum()
    squares = values.square()
    return Rank(int((values > tolerance).sum()), float(entropy.exp()), float(squares[0] / squares.sum()), len(rows))


def between(start: Tensor, end: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Points on the straight line from one embedding to another: (L, D) twice to (len(shares), L, D).

    Args:
        start: (L, D); ``end`` likewise.
        shares: of the way, 0 = ``start``, 1 = ``end``.
    """
    way = torch.tensor(shares, dtype=start.dtype).view(-1, *[1] * start.ndim)
    return start[None] + way * (end - start)[None]
