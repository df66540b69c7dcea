"""Intervals, p-values against controls, corrections for many tests, ROC figures. Pure functions on numbers.

NaN is refused everywhere: what could not be scored is counted by the caller and never averaged away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import TypedDict  # pydantic reads typing's own only from Python 3.12

__all__ = [
    "Interval",
    "Rate",
    "auc",
    "benjamini_hochberg",
    "bootstrap_mean",
    "clopper_pearson",
    "format_interval",
    "holm",
    "rank_p_value",
    "rate",
    "tpr_at_fpr",
]


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


class Rate(TypedDict):
    """``count`` of ``n`` with the exact 95 % interval of the share; share and interval are None when n is 0."""

    count: int
    n: int
    share: float | None
    interval: tuple[float, float] | None


def _numbers(values: ArrayLike, name: str, *, at_least: int = 1) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size < at_least:
        raise ValueError(f"{name}: expected at least {at_least} values, got {array.size}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {int((~np.isfinite(array)).sum())} that are not")
    return array


def _check_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}: expected a number between 0 and 1, got {value}")


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a binomial rate (Clopper and Pearson 1934): covers at least `confidence`, never less.

    Args:
        k: successes, 0 <= k <= n.
        n: trials; with none the interval is all of [0, 1].
        confidence: in (0, 1).
    """
    from scipy.stats import beta

    _check_share(confidence, "confidence")
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k={k}, n={n}")
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Interval(low, high)


def rate(count: int, n: int) -> Rate:
    """A share with its 95 % Clopper-Pearson interval, as it is written to JSON.

    Example:
        >>> rate(0, 30)["interval"][1] < 0.117
        True
    """
    if n == 0:
        return {"count": 0, "n": 0, "share": None, "interval": None}
    return {"count": count, "n": n, "share": count / n, "interval": clopper_pearson(count, n)}


def format_interval(rate: Rate) -> str:
    """The interval of a share in per cent, as text.

    Example:
        >>> format_interval(rate(3, 7))
        '10% to 82%'
    """
    if rate["interval"] is None:
        return "nothing to count"
    low, high = rate["interval"]
    return f"{low:.0%} to {high:.0%}"


def bootstrap_mean(values: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile-bootstrap interval of a mean. Give one value per independent unit (prompt, image), not per seed.

    Args:
        values: (n,) finite, n >= 1; with one value the interval is that value.
        confidence: in (0, 1).
        resamples: number of resamplings with replacement.
        seed: of the resampling, so that a report can be made again.
    """
    _check_share(confidence, "confidence")
    array = _numbers(values, "values")
    generator = np.random.default_rng(seed)
    means = np.array([array[generator.integers(0, array.size, array.size)].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def rank_p_value(value: float, controls: ArrayLike, *, higher: bool = True) -> float:
    """p-value of one value against N controls: (1 + number of controls at least as extreme) / (1 + N).

    Valid without any assumption on the distribution if, under the null hypothesis, the value is exchangeable with
    the controls (North et al. 2002). The smallest possible p is 1 / (1 + N): 19 controls are needed for 0.05.

    Args:
        value: the suspect's score, finite.
        controls: (N,) scores of the controls, finite, N >= 1.
        higher: whether higher values are the extreme ones.
    """
    score = _numbers([value], "value")[0]
    others = _numbers(controls, "controls")
    extreme = (others >= score) if higher else (others <= score)
    return float((1 + extreme.sum()) / (1 + others.size))


def _p_values(p: ArrayLike) -> NDArray[np.float64]:
    array = _numbers(p, "p", at_least=0)
    if ((array < 0) | (array > 1)).any():
        raise ValueError("p: expected numbers in [0, 1]")
    return array


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the family-wise error rate (Holm 1979), in the order given.

    Rejecting all that are <= alpha makes any false rejection at most alpha likely, whatever the dependence.
    """
    array = _p_values(p)
    order = np.argsort(array, kind="stable")
    scaled = array[order] * (array.size - np.arange(array.size))
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the false discovery rate (Benjamini and Hochberg 1995), in the order given.

    Among those <= alpha at most a share alpha is expected to be false, for independent or positively dependent tests.
    """
    array = _p_values(p)
    order = np.argsort(array, kind="stable")[::-1]
    scaled = array[order] * array.size / np.arange(array.size, 0, -1)
    adjusted = np.empty_like(array)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    return [float(value) for value in adjusted]


def auc(positives: ArrayLike, negatives: ArrayLike, *, higher: bool = True) -> float:
    """Area under the ROC curve: how often a positive is more extreme than a negative, ties counted half.

    Args:
        positives: (n,) scores of what should be found.
        negatives: (m,) scores of the controls.
        higher: whether higher scores mean "found".

    Returns:
        In [0, 1]; 0.5 is chance, 1 is perfect.
    """
    from scipy.stats import rankdata

    positive, negative = _numbers(positives, "positives"), _numbers(negatives, "negatives")
    ranks = rankdata(np.concatenate([positive, negative]) * (1 if higher else -1))
    wins = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(wins / (positive.size * negative.size))


def tpr_at_fpr(positives: ArrayLike, negatives: ArrayLike, fpr: float = 0.01, *, higher: bool = True) -> float:
    """Share of positives found at the loosest threshold that flags at most a share `fpr` of the negatives.

    With fewer than 1 / fpr negatives none of them may be flagged.
    """
    positive, negative = _numbers(positives, "positives"), _numbers(negatives, "negatives")
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr: expected a number in [0, 1], got {fpr}")
    sign = 1 if higher else -1
    allowed = int(np.floor(fpr * negative.size + 1e-9))
    if allowed >= negative.size:
        return 1.0
    barrier = np.sort(sign * negative)[::-1][allowed]  # the first negative that may not be flagged
    return float((sign * positive > barrier).mean())
