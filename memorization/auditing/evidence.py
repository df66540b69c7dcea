"""p-values of suspects against controls, from the tail of a fitted distribution.

A rank p-value (:func:`diffkit.stats.rank_p_value`) assumes nothing and cannot be below 1 / (1 + controls). Corrected
for hundreds of suspects of whom few are memorized, it never passes. The functions here extrapolate beyond the controls,
and each states what it assumes. All work on z = atanh(similarity), Fisher's transformation, on which similarities of
images that have nothing to do with each other are about normal, or on differences of z. Pure functions of numbers.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffkit.errors import InputError
from memorization.auditing.predictive_t import PredictiveT, predictive_t

if TYPE_CHECKING:
    from scipy.interpolate import PchipInterpolator

__all__ = [
    "TailFit",
    "as_normal",
    "controls_needed",
    "fit_tail",
    "largest_p",
    "least_deviations",
    "to_z",
]

MOST_SIMILAR = 0.9995  # a similarity of 1 would be infinitely far out; z stays below 4.2
LEAST_SPREAD = 1e-3  # standard deviation of z below which all controls are equal
SMALLEST_P = 1e-6  # extrapolation has an end: never less than this is reported
FEWEST = 10  # controls of one kind, to fit a distribution to
NORMALITY_LEVEL = 0.05  # of the Anderson-Darling test
NODES = 81  # of the table of p-values: between them they are exact to 0.1 %
MOST_CONTROLS = 1000  # with which the power is worked out
PARETO_CONTROLS, PARETO_SHARE = 50, 0.2  # from so many controls on, the tail is the top share of them


def to_z(similarity: ArrayLike) -> NDArray[np.float64]:
    """Fisher's z = atanh(similarity); similarities beyond +-0.9995 are cut off.

    Example:
        >>> to_z([0.0, 0.5, 1.0]).round(2).tolist()
        [0.0, 0.55, 4.15]
    """
    return np.arctanh(np.clip(np.asarray(similarity, dtype=np.float64), -MOST_SIMILAR, MOST_SIMILAR))


@dataclass(frozen=True)
class TailFit:
    """A distribution fitted to n controls, from which p-values beyond the largest of them are read.

    Attributes:
        family: "t": the average of t distributions of :func:`~memorization.auditing.predictive_t.predictive_t`;
            "pareto": a generalised Pareto tail above ``location``.
        n: controls.
        location: of the most probable t, or threshold of the tail; ``scale`` likewise.
        shape: degrees of freedom of the most probable t, or Pareto's xi.
        normality_p: of the Anderson-Darling test of the controls; "at least 0.15" and "at most 0.01" read as these.
        values: the controls', rising.
    """

    family: Literal["t", "pareto"]
    n: int
    location: float
    scale: float
    shape: float
    normality_p: float
    values: tuple[float, ...]

    @cached_property
    def predictive(self) -> PredictiveT:
        """What an unseen control may be, by the average of t distributions."""
        return predictive_t(np.array(self.values))

    @cached_property
    def _log_survival(self) -> PchipInterpolator:
        """Of the average of t distributions, between values from -1000 to 1000 scales: for thousands of suspects."""
        from scipy.interpolate import PchipInterpolator

        z = self.location + self.scale * np.sinh(np.linspace(-7.6, 7.6, NODES))
        return PchipInterpolator(z, [math.log(self.predictive.survival(value)) for value in z])

    def p_value(self, z: float) -> float:
        """Probability that a control as yet unseen is at least as far out, in [1e-6, 1].

        - t: :meth:`~memorization.auditing.predictive_t.PredictiveT.survival`.
        - pareto: P(x > u) P(x > z | x > u), the first by rank, the second fitted (Pickands 1975); below u by rank.
        """
        from scipy import stats

        if self.family == "t":
            p = math.exp(float(self._log_survival(np.clip(z, *self._log_survival.x[[0, -1]]))))
        elif z <= self.location:
            p = (1 + sum(value >= z for value in self.values)) / (1 + self.n)
        else:
            above = sum(value > self.location for value in self.values)
            tail = stats.genpareto.sf(z - self.location, self.shape, scale=self.scale)
            p = (1 + above) / (1 + self.n) * float(tail)
        return min(max(p, SMALLEST_P), 1.0)

    def quantiles(self) -> tuple[list[float], list[float]]:
        """Expected and observed z of the controls, rising, for a QQ plot; of a Pareto tail those above it."""
        from scipy import stats

        values = [value for value in self.values if self.family != "pareto" or value > self.location]
        places = (np.arange(len(values)) + 0.5) / max(len(values), 1)
        if self.family == "pareto":
            expected = self.location + stats.genpareto.ppf(places, self.shape, scale=self.scale)
        else:
            expected = stats.t.ppf(places, self.shape, self.location, self.scale)
        return expected.tolist(), values

    def density(self, points: int = 200) -> tuple[list[float], list[float]]:
        """z and the fitted density, over the range of the controls and beyond; of a Pareto tail above its threshold."""
        from scipy import stats

        spread = self.values[-1] - self.values[0]
        low = self.location if self.family == "pareto" else self.values[0] - 0.2 * spread
        z = np.linspace(low, self.values[-1] + 0.4 * spread, points)
        if self.family == "pareto":
            share = sum(value > self.location for value in self.values) / self.n
            return z.tolist(), (share * stats.genpareto.pdf(z - self.location, self.shape, scale=self.scale)).tolist()
        return z.tolist(), self.predictive.density(z).tolist()


def fit_tail(z: Sequence[float]) -> TailFit | None:
    """Fit the controls' tail; None with fewer than 10 controls, or where all are equal.

    A t distribution, averaged over its degrees of freedom; with 50 controls or more, if Anderson-Darling rejects
    normality at 0.05, the generalised Pareto tail over the largest fifth, which may be skew. Its tail may not be
    lighter than exponential: xi is at least 0.

    Example:
        >>> fit = fit_tail([0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7])
        >>> fit.family, fit.p_value(0.4) > 0.4, fit.p_value(1.5) < 3e-3
        ('t', True, True)
    """
    values = np.sort(np.asarray(z, dtype=np.float64))
    if not np.isfinite(values).all():
        raise ValueError("z: expected finite numbers")
    if values.size < FEWEST or values.std(ddof=1) < LEAST_SPREAD:
        return None
    return _fitted(tuple(values.tolist()))


@lru_cache(maxsize=64)  # an audit judges the same controls several times
def _fitted(controls: tuple[float, ...]) -> TailFit:
    from scipy import stats

    values, n = np.array(controls), len(controls)
    normality = float(stats.anderson(values, "norm", method="interpolate").pvalue)
    if n >= PARETO_CONTROLS and normality < NORMALITY_LEVEL:
        location = float(np.quantile(values, 1 - PARETO_SHARE))
        beyond = values[values > location] - location
        if np.unique(beyond).size > 1:  # the highest value alone, however often, has no tail
            shape, _, scale = stats.genpareto.fit(beyond, floc=0)
            if shape < 0:
                shape, scale = 0.0, float(beyond.mean())
            return TailFit("pareto", n, location, float(scale), float(shape), normality, controls)
    best = predictive_t(values)
    return TailFit("t", n, best.location, best.scale, best.freedom, normality, controls)


def largest_p(z: float, fits: Mapping[str, TailFit]) -> tuple[float, str] | None:
    """The largest p over kinds of controls, and that kind; None without a fit."""
    return max(((fit.p_value(z), kind) for kind, fit in fits.items()), default=None)


def as_normal(n: int) -> TailFit:
    """The fit of n controls that follow a normal distribution as well as n values can: mean 0, standard deviation 1."""
    from scipy import stats

    scores = stats.norm.ppf((np.arange(n) + 0.5) / n)
    fit = fit_tail((scores / scores.std(ddof=1)).tolist())
    if fit is None:
        raise InputError(f"Expected at least {FEWEST} controls, got {n}.")
    return fit


def least_deviations(suspects: int, controls: int, *, alpha: float = 0.05) -> float | None:
    """How far a single memorized image among the suspects has to lie above the controls' mean to be called.

    In standard deviations of the controls, if these are about normal; None where extrapolation ends before.

    Example:
        >>> round(least_deviations(500, 30), 1), round(least_deviations(1, 30), 1)
        (10.3, 1.8)
    """
    from scipy import optimize

    target = alpha / max(suspects, 1)
    if controls < FEWEST or target < SMALLEST_P:
        return None
    if target >= 0.5:
        return 0.0
    predictive = as_normal(controls).predictive
    return float(optimize.brentq(lambda z: math.log(predictive.survival(z) / target), 0.0, 1e4, xtol=1e-3))


def controls_needed(suspects: int, *, alpha: float = 0.05, deviations: float | None = None) -> int | None:
    """The fewest controls with which a single memorized image among the suspects can be called.

    The smallest of ``suspects`` p-values has to be at most alpha / suspects, by Holm and by Benjamini-Hochberg alike.

    Args:
        suspects: how many are tested at once.
        alpha: level of the corrected p-values.
        deviations: how far the image lies above the controls' mean, in their standard deviations, where the tail is
            fitted and the controls are about normal; None = by rank, which needs suspects / alpha - 1.

    Returns:
        None where no number is enough: extrapolation ends at p = 1e-6, or the image lies too near for 1000 controls.

    Example:
        >>> controls_needed(500), controls_needed(500, deviations=8.0)
        (9999, 49)
    """
    if suspects < 1:
        raise InputError(f"Expected at least 1 suspect, got {suspects}.")
    target = alpha / suspects
    if deviations is None:
        return max(math.ceil(1 / target - 1e-9) - 1, 1)
    if target < SMALLEST_P or as_normal(MOST_CONTROLS).p_value(deviations) > target:
        return None
    return FEWEST + bisect.bisect_left(
        range(FEWEST, MOST_CONTROLS), True, key=lambda n: as_normal(n).p_value(deviations) <= target
    )
