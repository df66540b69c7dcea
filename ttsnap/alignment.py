"""How well early rewards agree with final ones, and what that agreement is worth at a given budget.

Pure functions. Rewards are higher = better; the last axis holds the candidates of one prompt, everything before it are
prompts. A NaN among a prompt's values makes that prompt's result NaN, never 0; callers average with ``np.nanmean`` and
report how many are NaN. Ties are broken by the lower index where one order is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import simpson
from scipy.special import gammaln

from diffkit.stats import Interval
from ttsnap.reward_tensor import places

__all__ = [
    "FRACTIONS", "TopSelect", "Utilisation", "bootstrap_ratio", "budget_utilisation", "expected_best_of_n", "kendall",
    "regret", "survival", "top_count", "top_select",
]  # fmt: skip

Floats = NDArray[np.float64]
FRACTIONS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""Survivor fractions of the published top-select curve."""


def kendall(predicted: ArrayLike, final: ArrayLike) -> Floats:
    """Kendall's tau-b of each prompt, in [-1, 1]; pairs tied in either reward are corrected for.

    NaN where a reward is constant over the candidates, where there is one candidate only, or where a value is NaN: an
    average over prompts with ``np.nanmean`` leaves those out, and counting the NaN says how many they are.

    Args:
        predicted, final: (..., m) of one shape.

    Returns:
        (...,) float64.
    """
    a, b = _pair(predicted, final)
    rows, size = a.reshape(-1, a.shape[-1]), a.shape[-1]
    others = b.reshape(-1, size)
    upper = np.triu_indices(size, 1)
    taus = np.empty(len(rows))
    for index, (x, y) in enumerate(zip(rows, others, strict=True)):
        p, q = np.sign(x[upper[0]] - x[upper[1]]), np.sign(y[upper[0]] - y[upper[1]])
        taus[index] = _ratio(float(p @ q), math.sqrt(float(p @ p) * float(q @ q)))
    return taus.reshape(a.shape[:-1])


class TopSelect(NamedTuple):
    """For each prompt and fraction: whether the best candidate is kept (1 or 0), and the final reward lost if not."""

    accuracy: Floats
    gap: Floats


def top_count(fraction: float, size: int) -> int:
    """How many of ``size`` a fraction keeps: rounded half up, at least 1; as schedules count, 0.05 of 8 keeps 1."""
    return max(1, math.floor(size * Fraction(repr(float(fraction))) + Fraction(1, 2)))


def top_select(predicted: ArrayLike, final: ArrayLike, fractions: Sequence[float] = FRACTIONS) -> TopSelect:
    """Is the candidate with the best final reward among the top by the predicted one?

    Exactly :func:`top_count` candidates are kept for each fraction, ties by the lower index. (The authors' code keeps
    ``int(fraction * m)``, which for 0 selects all and reports accuracy 1, and keeps more on ties.)

    Args:
        predicted, final: (..., m), m >= 1. With several candidates of the best final reward, keeping one is enough.
        fractions: in (0, 1].

    Returns:
        accuracy and gap, each (..., len(fractions)); gap >= 0 in units of the final reward; NaN where a final or
        predicted value is NaN.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    a, b = _pair(predicted, final)
    if any(not 0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions: expected numbers in (0, 1], got {list(fractions)}")
    order = np.argsort(places(a), axis=-1)
    kept_best = np.maximum.accumulate(np.take_along_axis(b, order, axis=-1), axis=-1)
    counts = [top_count(fraction, a.shape[-1]) - 1 for fraction in fractions]
    gap = b.max(axis=-1, keepdims=True) - kept_best[..., counts]
    bad = np.asarray(np.isnan(a + b).any(axis=-1, keepdims=True))
    return TopSelect(np.where(bad, np.nan, gap == 0), np.where(bad, np.nan, gap))


def survival(stages: Sequence[NDArray[np.int64]], final: ArrayLike) -> Floats:
    """How often the best of the drawn candidates is still there at each stage.

    Args:
        stages: for each stage the pool indices (P, R, k) of its candidates, as ``Replay.stages``; the first were drawn.
        final: (P, N) final rewards of the pool.

    Returns:
        (P, stages) shares of the R resamplings, 1 at the first stage, never rising. Reaching the best value counts,
        so one of several equally best is enough. NaN where the best is unknown, because no drawn final is known.
    """
    finals = np.asarray(final, dtype=np.float64)
    rows = np.arange(len(finals))[:, None, None]
    rewards = np.where(np.isnan(finals), -np.inf, finals)
    best = np.stack([rewards[rows, ids].max(axis=-1) for ids in stages], axis=-1)
    kept = np.where(np.isinf(best[..., :1]), np.nan, best == best[..., :1])
    return np.asarray(kept.mean(axis=1))


def regret(values: ArrayLike, final: ArrayLike) -> Floats:
    """Mean over resamplings of what the winner lacks to the best of the whole pool: (P,), >= 0.

    Args:
        values: (P, R) final rewards of the winners; NaN (nobody won) is left out, a prompt of NaN only gives NaN.
        final: (P, N) of the pool; NaN is left out.
    """
    lacking = _best(np.asarray(final, dtype=np.float64))[:, None] - np.asarray(values, dtype=np.float64)
    counts = (~np.isnan(lacking)).sum(axis=-1)
    means: Floats = np.divide(np.nansum(lacking, axis=-1), counts, out=np.full(len(lacking), np.nan), where=counts > 0)
    return means


def expected_best_of_n(final: ArrayLike, n: int) -> Floats:
    """Exact expectation of the best final reward of n candidates drawn without replacement, for each prompt.

    With r_(1) <= ... <= r_(M) it is the sum over i of r_(i) C(i-1, n-1) / C(M, n): no sampling. NaN loses to every
    number; the expectation is over the draws that hold at least one number.

    Args:
        final: (..., M); n = M gives the maximum, n = 1 the mean.

    Returns:
        (...,) float64; NaN where all values are NaN.

    Raises:
        ValueError: n is not in 1 to M.
    """
    pool = np.asarray(final, dtype=np.float64)
    size = pool.shape[-1]
    if not 1 <= n <= size:
        raise ValueError(f"n: expected 1 to {size} candidates, got {n}")
    ordered = np.sort(np.where(np.isnan(pool), -np.inf, pool), axis=-1)
    above = np.arange(n, size + 1)  # the 1-based place i of a value that can be the best of n
    logs = gammaln(above) - gammaln(n) - gammaln(above - n + 1)  # log C(i-1, n-1)
    total = gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1)
    weights = np.exp(logs - total)
    values = ordered[..., n - 1 :]
    finite = np.isfinite(values)
    sums = (np.where(finite, values, 0.0) * weights).sum(axis=-1)
    shares = (finite * weights).sum(axis=-1)
    means: Floats = np.divide(sums, shares, out=np.full(shares.shape, np.nan), where=shares > 0)
    return means


class Utilisation(NamedTuple):
    """Gain in per cent over best-of-N, and its interval over prompts."""

    gain: float
    low: float
    high: float


def budget_utilisation(
    curves: ArrayLike, best_of_n: ArrayLike, budgets: ArrayLike, *, confidence: float = 0.95, seed: int = 0
) -> Utilisation:
    """Area under reward against budget, relative to best-of-N's, in per cent (TTSnap, arXiv 2511.22242).

    Both curves are taken from best-of-N's reward at the smallest budget and integrated by Simpson's rule:
    100 (A - A_bon) / A_bon. 0 is best-of-N, higher is better, negative is worse. The authors draw best-of-N at random,
    its first point included; here it should be the exact expectation.

    Args:
        curves, best_of_n: (P, B) reward of each prompt at each budget, finite.
        budgets: (B,) rising, at least 2.

    Returns:
        the gain of the mean curves with a percentile-bootstrap interval over prompts; NaN where best-of-N does not
        rise, so that there is nothing to compare with.

    Raises:
        ValueError: shapes differ, a value is not finite, or the budgets do not rise.
    """
    ours, theirs, at = (np.asarray(values, dtype=np.float64) for values in (curves, best_of_n, budgets))
    if ours.ndim != 2 or ours.shape != theirs.shape or at.shape != ours.shape[1:] or at.size < 2:
        raise ValueError(f"expected curves of (prompts, budgets), got {ours.shape}, {theirs.shape} and {at.shape}")
    if not (np.diff(at) > 0).all():
        raise ValueError("budgets: expected rising numbers")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ValueError("curves: expected finite rewards; leave out prompts that could not be scored, and count them")
    start = theirs[:, :1]
    area, reference = (np.asarray(simpson(values - start, x=at, axis=-1)) for values in (ours, theirs))
    interval = bootstrap_ratio(area, reference, confidence=confidence, seed=seed)
    return Utilisation(*(100 * (value - 1) for value in (_ratio(area.mean(), reference.mean()), *interval)))


def bootstrap_ratio(
    above: ArrayLike, below: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile-bootstrap interval of mean(above) / mean(below), both of the same resampled prompts (P,).

    NaN when a resampling has a denominator that is not positive: the ratio has no interval then.
    """
    a, b = _pair(above, below)
    rows = np.random.default_rng(seed).integers(0, a.size, (resamples, a.size))
    tops, bottoms = a[rows].mean(axis=1), b[rows].mean(axis=1)
    if (bottoms <= 0).any():
        return Interval(math.nan, math.nan)
    low, high = np.quantile(tops / bottoms, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below > 0 else math.nan


def _best(final: Floats) -> Floats:
    rewards = np.where(np.isnan(final), -np.inf, final).max(axis=-1)
    return np.where(np.isinf(rewards), np.nan, rewards)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim == 0 or first.shape[-1] == 0:
        raise ValueError(
            f"expected two arrays of one shape with at least one candidate, got {first.shape}, {second.shape}"
        )
    return first, second
