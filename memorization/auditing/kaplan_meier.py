"""Work to threshold: attack steps until an image is reproduced; images that never are count as censored.

The product-limit estimator of Kaplan and Meier (1958): with ``d_j`` images reproduced at work ``w_j`` and ``n_j``
not yet reproduced just before, ``S(w) = prod over w_j <= w of (1 - d_j / n_j)``. The interval is the log-log one on
Greenwood's variance (Kalbfleisch and Prentice 1980), which stays inside [0, 1].

An audit measures only at its budgets, so an image that is reproduced between two of them counts at the later one: the
work is an upper bound. An image that is not reproduced at the last budget is censored there, never "infinite".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diffkit.errors import InputError

NORMAL_95 = 1.959963984540054  # the 97.5 % point of the standard normal


class Work(NamedTuple):
    """Work of one image: where it was reproduced, or, if not ``back``, the last budget."""

    work: float
    back: bool


class Step(NamedTuple):
    """One point of the curve: share not yet back after ``work``, with its 95 % interval and the counts behind it."""

    work: float
    at_risk: int
    back: int
    share: float
    low: float
    high: float


def work_to_threshold(curve: Mapping[int, float], threshold: float) -> Work:
    """First kept budget at which a similarity reaches the threshold; else censored at the last budget.

    Args:
        curve: budget (attack steps) -> similarity; at least one.
        threshold: similarity from which an image counts as brought back.

    Raises:
        InputError: an empty curve.
    """
    if not curve:
        raise InputError("A budget curve has no points; work to threshold needs at least one budget.")
    reached = [budget for budget in sorted(curve) if curve[budget] >= threshold]
    return Work(reached[0], True) if reached else Work(max(curve), False)


def kaplan_meier(works: Sequence[Work]) -> list[Step]:
    """The share of images not yet back, at every work at which one came back or was censored; rising in work.

    Events come before censorings at the same work, as usual. Empty when there are no images.
    """
    steps: list[Step] = []
    share, greenwood = 1.0, 0.0
    for point in sorted({w.work for w in works}):
        at_risk = sum(w.work >= point for w in works)
        back = sum(w.work == point and w.back for w in works)
        share *= 1 - back / at_risk
        greenwood += back / (at_risk * (at_risk - back)) if at_risk > back else 0.0
        low, high = _interval(share, greenwood, len(works))
        steps.append(Step(point, at_risk, back, share, low, high))
    return steps


def _interval(share: float, greenwood: float, n: int) -> tuple[float, float]:
    """95 % interval; where the log-log form is not defined (none or all back) the exact binomial one."""
    from diffkit.stats import clopper_pearson

    if 0 < share < 1:
        spread = NORMAL_95 * math.sqrt(greenwood) / math.log(share)
        return share ** math.exp(-spread), share ** math.exp(spread)
    return tuple(clopper_pearson(n if share == 1 else 0, n))  # type: ignore[return-value]


def median_work(steps: Sequence[Step]) -> float | None:
    """Work after which half of the images are back; None when fewer than half ever came back."""
    return next((step.work for step in steps if step.share <= 0.5), None)


def log_rank(suspects: Sequence[Work], controls: Sequence[Work]) -> float | None:
    """Two-sided p-value of the log-rank test (Mantel 1966) that both groups are reproduced alike; None if no image is.

    Its chi-squared approximation is rough for a handful of images; read it with the curves.
    """
    from scipy.stats import chi2

    observed = expected = variance = 0.0
    for point in sorted({w.work for w in [*suspects, *controls] if w.back}):
        n1, n2 = (sum(w.work >= point for w in group) for group in (suspects, controls))
        d1, d2 = (sum(w.work == point and w.back for w in group) for group in (suspects, controls))
        n, d = n1 + n2, d1 + d2
        observed += d1
        expected += d * n1 / n
        if n > 1:
            variance += d * (n1 / n) * (n2 / n) * (n - d) / (n - 1)
    return float(chi2.sf((observed - expected) ** 2 / variance, 1)) if variance > 0 else None
