"""A figure and its comparison with a null, with intervals: bootstrap over images, never over the pairs they share.

Two kinds of groups occur. *Within* groups give one value an image (the mean over that image's pairs), and images are
independent. *Across* groups give one matrix over images (entry i, j compares image i with image j); its pairs share
images, so images are drawn with replacement and all pairs of different images among those drawn are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean with its 95 % percentile-bootstrap interval; all None without any unit.

    Attributes:
        n: independent units (images, starts or captions).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING = Estimate(None, None, None, 0)


def off_diagonal_mean(matrix: ArrayLike) -> float | None:
    """Mean of a square matrix's off-diagonal entries that are not NaN; None without any."""
    array = np.asarray(matrix, dtype=np.float64)
    kept = array[~np.eye(len(array), dtype=bool)]
    kept = kept[~np.isnan(kept)]
    return float(kept.mean()) if kept.size else None


def present(values: Sequence[float | None]) -> Array:
    """The values that are neither None nor NaN, as an array."""
    return np.array([value for value in values if value is not None and not np.isnan(value)], dtype=np.float64)


def within(values: Sequence[float | None], *, seed: int = 0) -> Estimate:
    """Mean over images of one value each."""
    array = present(values)
    if not array.size:
        return NOTHING
    return Estimate(float(array.mean()), *_ends(_drawn_means(array, np.random.default_rng(seed))), array.size)


def across(matrix: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean over all pairs of different units of an (n, n) matrix; NaN entries are missing."""
    array = np.asarray(matrix, dtype=np.float64)
    value = off_diagonal_mean(array) if array.size else None
    if value is None:
        return NOTHING
    return Estimate(value, *_ends(_drawn_pairs(array, np.random.default_rng(seed))), len(array))


def against(
    values: Sequence[float | None],
    *,
    null: Sequence[float | None] | None = None,
    matrix: ArrayLike | None = None,
    how: Literal["ratio", "difference"] = "ratio",
    seed: int = 0,
) -> Estimate:
    """Mean of ``values`` over, or minus, the mean of a null, with an interval that resamples both.

    Args:
        values: one an image.
        null: the null's values, one a unit (a control); or
        matrix: (n, n), a null across units.
        how: "ratio" for sizes such as distances, "difference" for shares and cosines.
        seed: of the resampling.

    Returns:
        Its ``n`` is the smaller of both numbers of units. None where either is missing, or for a ratio to zero.
    """
    array, pairs = present(values), matrix is not None
    other = np.asarray(matrix, dtype=np.float64) if pairs else present(null or ())
    if not array.size or not other.size:
        return NOTHING
    bottom = off_diagonal_mean(other) if pairs else float(other.mean())
    value = _compared(float(array.mean()), bottom, how)
    if value is None:
        return NOTHING
    generator = np.random.default_rng(seed)
    tops = _drawn_means(array, generator)
    bottoms = _drawn_pairs(other, generator) if pairs else _drawn_means(other, generator)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = tops / bottoms if how == "ratio" else tops - bottoms
    return Estimate(value, *_ends(drawn), min(array.size, len(other)))


def _compared(value: float, null: float | None, how: Literal["ratio", "difference"]) -> float | None:
    if null is None or (how == "ratio" and null == 0):
        return None
    return value / null if how == "ratio" else value - null


def _drawn_means(values: Array, generator: np.random.Generator) -> Array:
    """(RESAMPLES,) means of the values drawn with replacement."""
    means: Array = values[generator.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
    return means


def _drawn_pairs(matrix: Array, generator: np.random.Generator) -> Array:
    """(RESAMPLES,) means over pairs of different units among those drawn; a unit drawn twice makes no pair.

    With c_i the number of times that unit i was drawn, that is the sum of c_i c_j M_ij over i != j by the sum of
    c_i c_j; NaN where a resample has no pair.
    """
    n = len(matrix)
    counts = generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)
    valid = ~np.isnan(matrix) & ~np.eye(n, dtype=bool)
    total = ((counts @ np.where(valid, matrix, 0)) * counts).sum(1)
    number = ((counts @ valid) * counts).sum(1)
    means: Array = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return means


def _ends(drawn: Array) -> tuple[float | None, float | None]:
    """The 95 % percentile interval of the finite values."""
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return None, None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
