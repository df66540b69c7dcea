"""p-values of suspects against controls, from the tail of a fitted distribution.

A rank p-value (:func:`diffkit.stats.rank_p_value`) assumes nothing and cannot be below 1 / (1 + controls). Corrected
for hundreds of suspects of whom few are memorized, it never passes. The functions here extrapolate beyond the controls,
and each states what it assumes. All work on z = atanh(similarity), Fisher's transformation, on which similarities of
images that have nothing to do with each other are about normal. Pure functions of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffkit.errors import InputError

__all__ = [
    "TailFit",
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
    """A distribution fitted to the z of n controls, from which p-values beyond the largest of them are read.

    Attributes:
        family: "normal": the predictive Student t of a normal sample; "student": a location-scale t distribution, where
            normality was rejected; "pareto": a generalised Pareto tail above ``location``.
        n: controls.
        location: mean of the controls, location of the t, or threshold of the tail.
        scale: standard deviation, or scale.
        shape: degrees of freedom, or Pareto's xi.
        normality_p: of the Anderson-Darling test of the controls; "at least 0.15" and "at most 0.01" read as these.
        values: the controls' z, rising.
    """

    family: Literal["normal", "student", "pareto"]
    n: int
    location: float
    scale: float
    shape: float
    normality_p: float
    values: tuple[float, ...]

    def p_value(self, z: float) -> float:
        """Probability that a control as yet unseen is at least as similar, in [1e-6, 1].

        - normal: of the sample x_1 ... x_n from N(mu, sigma) with both unknown, (x - mean) / (sd sqrt(1 + 1/n)) follows
          Student's t with n - 1 degrees of freedom: exact, whatever mu and sigma.
        - student: the fitted distribution, its scale widened by sqrt(1 + 1/n) for the unknown location.
        - pareto: P(x > u) P(x > z | x > u), the first by rank, the second fitted (Pickands 1975); below u by rank.
        """
        from scipy import special, stats

        if self.family == "pareto":
            above = sum(value > self.location for value in self.values)
            if z <= self.location:
                p = (1 + sum(value >= z for value in self.values)) / (1 + self.n)
            else:
                tail = stats.genpareto.sf(z - self.location, self.shape, scale=self.scale)
                p = (1 + above) / (1 + self.n) * float(tail)
        else:
            deviations = (z - self.location) / (self.scale * math.sqrt(1 + 1 / self.n))
            p = float(special.stdtr(self.shape, -deviations))
        return min(max(p, SMALLEST_P), 1.0)

    def quantiles(self) -> tuple[list[float], list[float]]:
        """Expected and observed z of the controls, rising, for a QQ plot; of a Pareto tail those above it."""
        from scipy import stats

        values = [value for value in self.values if self.family != "pareto" or value > self.location]
        places = (np.arange(len(values)) + 0.5) / max(len(values), 1)
        if self.family == "pareto":
            expected = self.location + stats.genpareto.ppf(places, self.shape, scale=self.scale)
        elif self.family == "student":
            expected = stats.t.ppf(places, self.shape, self.location, self.scale)
        else:
            expected = stats.norm.ppf(places, self.location, self.scale)
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
        if self.family == "student":
            return z.tolist(), stats.t.pdf(z, self.shape, self.location, self.scale).tolist()
        return z.tolist(), stats.norm.pdf(z, self.location, self.scale).tolist()


def fit_tail(z: Sequence[float]) -> TailFit | None:
    """Fit the controls' tail; None with fewer than 10 controls, or where all are equal.

    A normal distribution, unless Anderson-Darling rejects it at 0.05: then the generalised Pareto tail over the largest
    fifth with 50 controls or more, else a t distribution by maximum likelihood. Neither may have a lighter tail than
    normal: xi is at least 0, and a t has at most n - 1 degrees of freedom.

    Example:
        >>> fit = fit_tail([0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7])
        >>> fit.family, fit.p_value(0.4) > 0.4, fit.p_value(1.5) < 1e-3
        ('normal', True, True)
    """
    from scipy import stats

    values = np.sort(np.asarray(z, dtype=np.float64))
    n = values.size
    if not np.isfinite(values).all():
        raise ValueError("z: expected finite numbers")
    if n < FEWEST or values.std(ddof=1) < LEAST_SPREAD:
        return None
    normality = float(stats.anderson(values, "norm", method="interpolate").pvalue)
    kept = tuple(values.tolist())
    if normality >= NORMALITY_LEVEL:
        return TailFit("normal", n, float(values.mean()), float(values.std(ddof=1)), n - 1, normality, kept)
    if n >= PARETO_CONTROLS:
        location = float(np.quantile(values, 1 - PARETO_SHARE))
        shape, _, scale = stats.genpareto.fit(values[values > location] - location, floc=0)
        if shape < 0:
            shape, scale = 0.0, float((values[values > location] - location).mean())
        return TailFit("pareto", n, location, float(scale), float(shape), normality, kept)
    freedom, location, scale = stats.t.fit(values)
    return TailFit("student", n, float(location), float(scale), float(min(freedom, n - 1)), normality, kept)


def largest_p(z: float, fits: Mapping[str, TailFit]) -> tuple[float, str] | None:
    """The largest p over kinds of controls, and that kind; None without a fit.

    Controls of several kinds (scenes, photographs) are never pooled, since the bulk of an easy kind would make the
    harder kind's ordinary similarities look extreme.
    """
    return max(((fit.p_value(z), kind) for kind, fit in fits.items()), default=None)


def least_deviations(suspects: int, controls: int, *, alpha: float = 0.05) -> float | None:
    """How far a single memorized image among the suspects has to lie above the controls' mean to be called.

    In standard deviations of the controls, with their normal tail; None where extrapolation ends before.

    Example:
        >>> round(least_deviations(500, 30), 1), round(least_deviations(1, 30), 1)
        (4.3, 1.7)
    """
    from scipy import stats

    target = alpha / max(suspects, 1)
    if controls < FEWEST or target < SMALLEST_P:
        return None
    return float(stats.t.isf(target, controls - 1) * math.sqrt(1 + 1 / controls))


def controls_needed(suspects: int, *, alpha: float = 0.05, deviations: float | None = None) -> int | None:
    """The fewest controls with which a single memorized image among the suspects can be called.

    The smallest of ``suspects`` p-values has to be at most alpha / suspects, by Holm and by Benjamini-Hochberg alike.

    Args:
        suspects: how many are tested at once.
        alpha: level of the corrected p-values.
        deviations: how far the image lies above the controls' mean, in their standard deviations, where the tail is
            fitted; None = by rank, which needs suspects / alpha - 1.

    Returns:
        None where no number is enough: extrapolation ends at p = 1e-6, or the image lies too near.

    Example:
        >>> controls_needed(500), controls_needed(500, deviations=6.0)
        (9999, 11)
    """
    from scipy import stats

    if suspects < 1:
        raise InputError(f"Expected at least 1 suspect, got {suspects}.")
    target = alpha / suspects
    if deviations is None:
        return max(math.ceil(1 / target - 1e-9) - 1, 1)
    if target < SMALLEST_P or stats.norm.sf(deviations) > target:
        return None
    n = FEWEST
    while stats.t.sf(deviations / math.sqrt(1 + 1 / n), n - 1) > target:
        n += max(1, n // 50)
        if n > 100_000:
            return None
    return n
