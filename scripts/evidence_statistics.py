"""One number an item, by different statistics, and how well each tells planted images from those never planted.

All are on the scale z = atanh(similarity) where they are similarities, and higher means more memorized. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from evidence_records import Item

from diffkit.stats import auc
from memorization.auditing.evidence import FEWEST, to_z

LEVEL = 0.5  # similarity whose step is counted; the threshold is reached by too few controls
RESAMPLES = 2000
Statistic = Callable[[Item, Sequence[int]], float | None]


def at_looks(looks: Sequence[Sequence[float]]) -> np.ndarray:
    """z of the median over generations at every look."""
    return to_z([float(np.median(row)) for row in looks])


def highest(item: Item, budgets: Sequence[int]) -> float:
    """z of the highest look after the start, of the median over generations: what verdicts use."""
    return float(at_looks(item.looks)[1:].max())


def last(item: Item, budgets: Sequence[int]) -> float:
    """z of the last look."""
    return float(at_looks(item.looks)[-1])


def mean_over_generations(item: Item, budgets: Sequence[int]) -> float:
    """Highest look of the mean of z over generations."""
    return float(to_z(item.looks)[1:].mean(axis=1).max())


def mean_over_looks(item: Item, budgets: Sequence[int]) -> float:
    """Mean over the looks after the start."""
    return float(at_looks(item.looks)[1:].mean())


def caption(item: Item, budgets: Sequence[int]) -> float:
    """z of the caption's median."""
    return float(to_z(float(np.median(item.caption))))


def caption_and_attack(item: Item, budgets: Sequence[int]) -> float:
    """z of the caption plus z of the highest look."""
    return caption(item, budgets) + highest(item, budgets)


def rise(item: Item, budgets: Sequence[int]) -> float:
    """Highest look less the start itself, which resembles the image by chance only."""
    return highest(item, budgets) - float(at_looks(item.looks)[0])


def above_reference(item: Item, budgets: Sequence[int]) -> float | None:
    """Highest look less that of the same attack on the reference model."""
    if item.reference is None:
        return None
    return highest(item, budgets) - float(at_looks(item.reference)[1:].max())


def steps_needed(item: Item, budgets: Sequence[int]) -> float:
    """Minus the steps to a similarity of 0.5, linear between looks; twice the budget where it is never reached."""
    z, level = at_looks(item.looks), float(to_z(LEVEL))
    for place in range(1, len(z)):
        if z[place] >= level:
            before, after = budgets[place - 1], budgets[place]
            share = (level - z[place - 1]) / (z[place] - z[place - 1]) if z[place] > z[place - 1] else 0.0
            return -(before + max(share, 0.0) * (after - before))
    return -2.0 * budgets[-1]


def noise_magnitude(item: Item, budgets: Sequence[int]) -> float | None:
    """Score of the detector of captions (Wen et al. 2024)."""
    return item.noise


STATISTICS: Mapping[str, Statistic] = {
    "highest look": highest,
    "last look": last,
    "mean over looks": mean_over_looks,
    "highest look of the mean over generations": mean_over_generations,
    "highest look less start": rise,
    "highest look less reference": above_reference,
    "caption plus highest look": caption_and_attack,
    "caption alone": caption,
    "steps to a similarity of 0.5": steps_needed,
    "noise magnitude of the caption": noise_magnitude,
}


def values(statistic: Statistic, items: Sequence[Item], budgets: Sequence[int]) -> dict[str, np.ndarray]:
    """Kind -> a statistic's known values."""
    groups: dict[str, list[float]] = {}
    for item in items:
        value = statistic(item, budgets)
        if value is not None:
            groups.setdefault(item.kind, []).append(value)
    return {kind: np.array(group) for kind, group in groups.items()}


def deviations(value: float, null: Mapping[str, np.ndarray]) -> float | None:
    """Predictive standard deviations above the mean of the kind it stands out from the least; None without a kind."""
    least = [
        (value - group.mean()) / (group.std(ddof=1) * math.sqrt(1 + 1 / group.size))
        for group in null.values()
        if group.size >= FEWEST and group.std() > 0
    ]
    return float(min(least)) if least else None


def interval(
    function: Callable[[np.ndarray, Mapping[str, np.ndarray]], float | None],
    positives: np.ndarray,
    null: Mapping[str, np.ndarray],
) -> dict[str, float | None]:
    """A figure and its 95 % bootstrap interval, positives and each kind of the null resampled."""
    rng = np.random.default_rng(0)
    figure = function(positives, null)
    if figure is None:
        return {"value": None, "low": None, "high": None}
    drawn = [
        function(rng.choice(positives, positives.size), {kind: rng.choice(x, x.size) for kind, x in null.items()})
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile([value for value in drawn if value is not None], [0.025, 0.975])
    return {"value": figure, "low": float(low), "high": float(high)}


def median_deviations(positives: np.ndarray, null: Mapping[str, np.ndarray]) -> float | None:
    """Median over the positives of their deviations from the hardest kind."""
    each = [deviation for value in positives if (deviation := deviations(value, null)) is not None]
    return float(np.median(each)) if each else None


def area(positives: np.ndarray, null: Mapping[str, np.ndarray]) -> float | None:
    """AUC against all kinds together."""
    together = np.concatenate(list(null.values())) if null else np.array([])
    return auc(positives, together) if together.size else None


def separation(statistic: Statistic, groups: Mapping[str, Sequence[Item]], budgets: Sequence[int]) -> dict[str, Any]:
    """One statistic: deviations and AUC of each group of planted images against controls and never planted ones."""
    nulls = {name: values(statistic, groups[name], budgets) for name in ("control", "never planted")}
    row: dict[str, Any] = {"n": {name: int(sum(x.size for x in null.values())) for name, null in nulls.items()}}
    for group in groups:
        if group in nulls:
            continue
        positives = np.concatenate(list(values(statistic, groups[group], budgets).values()) or [np.array([])])
        row[group] = {"n": int(positives.size)}
        for name, null in nulls.items():
            row[group][name] = {
                "deviations": interval(median_deviations, positives, null),
                "auc": interval(area, positives, null),
                "each": [deviations(value, null) for value in positives],
            }
    unplanted = np.concatenate(list(nulls["never planted"].values()))
    above = [deviation for value in unplanted if (deviation := deviations(value, nulls["control"])) is not None]
    row["never planted, highest deviations from controls"] = max(above, default=None)
    return row
