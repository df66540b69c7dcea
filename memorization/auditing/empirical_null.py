"""The bulk of many suspects, most of whom are not memorized, as their own null distribution. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memorization.auditing.evidence import SMALLEST_P

__all__ = ["EmpiricalNull", "empirical_null"]

NULL_SUSPECTS = 200  # from so many suspects on, they can be their own null
CENTRE = 1.5  # robust deviations above the median, to which suspects are taken for null ones
FREEDOMS = (1000.0, 30.0, 10.0, 6.0, 4.0, 3.0)  # degrees of freedom of their null, from about normal to heavy tails
NOT_REJECTED = 1.35  # loss of log-likelihood: half the 0.9 quantile of chi-squared, a one-sided test at 0.05


@dataclass(frozen=True)
class EmpiricalNull:
    """The bulk of the suspects as their own null: a t distribution with a share of all suspects.

    Attributes:
        n: suspects.
        mean: of the distribution; ``scale`` and ``freedom``: its scale and degrees of freedom, 1000 for normal.
        share: estimated share of the suspects that are null.
    """

    n: int
    mean: float
    scale: float
    freedom: float
    share: float

    @property
    def sd(self) -> float:
        """Standard deviation."""
        return self.scale * math.sqrt(self.freedom / (self.freedom - 2))

    def p_value(self, z: float) -> float:
        """Probability of at least z under the null, in [1e-6, 1]."""
        from scipy import special

        return min(max(float(special.stdtr(self.freedom, (self.mean - z) / self.scale)), SMALLEST_P), 1.0)


def empirical_null(z: Sequence[float]) -> EmpiricalNull | None:
    """The empirical null of many suspects, most of whom are not memorized (Efron, JASA 2004); None with fewer than 200.

    The suspects up to 1.5 robust deviations above the median are taken for null ones: a t distribution truncated there
    is fitted to them by maximum likelihood, and the null share is their share divided by the probability that the
    fitted distribution gives to that side. It assumes that the null is about symmetric and that few memorized suspects
    lie on that side; with a share below 0.8 the second is doubtful, and the null should not be used.

    Efron fits a normal distribution to the centre, which says nothing of the tails: where these are heavy, one of 500
    null suspects is soon called. The lower tail, where no memorized suspect lies, shows them. The degrees of freedom
    are the fewest of 3, 4, 6, 10, 30 and 1000 (normal) that a likelihood ratio test at 0.05 does not reject.

    Example:
        >>> import numpy as np
        >>> null = empirical_null(np.random.default_rng(0).normal(0.4, 0.2, size=1000))
        >>> round(null.mean, 1), round(null.sd, 1), null.share > 0.9
        (0.4, 0.2, True)
    """
    from scipy import special, stats

    values = np.asarray(z, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("z: expected finite numbers")
    if values.size < NULL_SUSPECTS:
        return None
    middle = float(np.median(values))
    robust = float(stats.iqr(values, scale="normal"))
    if robust == 0:
        return None
    high = middle + CENTRE * robust
    below = values[values <= high]
    fits, location, log_scale = [], middle, math.log(robust)
    for freedom in FREEDOMS:
        loss, location, log_scale = _truncated_t(below, high, freedom, (location, log_scale))
        fits.append((loss, freedom, location, log_scale))
    least = min(fits)[0]
    _, freedom, mean, log_scale = next(fit for fit in reversed(fits) if fit[0] <= least + NOT_REJECTED)
    scale = math.exp(log_scale)
    inside = float(special.stdtr(freedom, (high - mean) / scale))
    return EmpiricalNull(values.size, mean, scale, freedom, min(below.size / values.size / inside, 1.0))


def _truncated_t(
    values: NDArray[np.float64], high: float, freedom: float, start: Sequence[float]
) -> tuple[float, float, float]:
    """A t distribution cut off above ``high``, fitted to the values: minus log-likelihood, location and log scale.

    The density is f((z - m) / s) / s / F((high - m) / s), with f and F of Student's t; terms of f that depend on the
    degrees of freedom alone are kept, so that losses of different ones compare.
    """
    from scipy import optimize, special

    constant = special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2) - math.log(freedom * math.pi) / 2

    def minus_log_likelihood(parameters: NDArray[np.float64]) -> float:
        mean, log_scale = parameters
        deviations = (values - mean) / math.exp(log_scale)
        logs = constant - (freedom + 1) / 2 * np.log1p(deviations**2 / freedom)
        inside = max(special.stdtr(freedom, (high - mean) / math.exp(log_scale)), 1e-300)
        return float(values.size * (log_scale + math.log(inside)) - logs.sum())

    best = optimize.minimize(
        minus_log_likelihood, list(start), method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-3}
    )
    return float(best.fun), float(best.x[0]), float(best.x[1])
