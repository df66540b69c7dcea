"""From scores of labelled captions to a threshold, with AUC and rates, their n and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.stats import Interval, Rate, auc, rate

__all__ = [
    "MIN_NEGATIVES",
    "MIN_POSITIVES",
    "DetectorCalibration",
    "Threshold",
    "calibrate_detector",
    "threshold_at",
]

MIN_NEGATIVES = 19  # fewer cannot establish a false-alarm rate below 5 %
MIN_POSITIVES = 5
RESAMPLES = 2000


@dataclass(frozen=True)
class Threshold:
    """Above which score a caption is flagged.

    Attributes:
        value: flagged is what scores strictly higher.
        wanted: the requested share of false alarms, in [0, 1).
        false_alarms: negatives above the threshold, of all negatives. The true rate may be as high as the interval's
            upper end: 11.6 % for 0 of 30.
    """

    value: float
    wanted: float
    false_alarms: Rate

    def flags(self, score: float) -> bool:
        """Whether a score is above the threshold."""
        return score > self.value


@dataclass(frozen=True)
class DetectorCalibration:
    """Threshold and rates of a detector on labelled captions.

    Attributes:
        detector: its name.
        threshold: the loosest with at most the wanted share of false alarms among the negatives.
        found: positives above it (the true positive rate, given this threshold).
        auc: in [0, 1], 0.5 is chance; ``auc_interval``: 95 % percentile bootstrap over captions of both classes. For
            a perfect separation it is [1, 1], whatever n is.
    """

    detector: str
    threshold: Threshold
    found: Rate
    auc: float
    auc_interval: Interval

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def threshold_at(negatives: Sequence[float], fpr: float = 0.01) -> Threshold:
    """The loosest threshold that flags at most a share ``fpr`` of the negatives; with few, none of them.

    Args:
        negatives: (m,) scores, higher = more likely memorized, of captions that are known not to be memorized.
        fpr: wanted share of false alarms, in [0, 1).

    Raises:
        InputError: too few negatives, a score that is not finite, or a share out of range.
    """
    if not 0 <= fpr < 1:
        raise InputError(f"Expected a share of false alarms from 0 to below 1, got {fpr}.")
    scores = _finite(negatives, "negatives", MIN_NEGATIVES)
    allowed = int(np.floor(fpr * scores.size + 1e-9))
    value = float(np.sort(scores)[::-1][allowed])
    return Threshold(value, fpr, rate(int((scores > value).sum()), scores.size))


def calibrate_detector(
    positives: Sequence[float], negatives: Sequence[float], *, detector: str, fpr: float = 0.01, seed: int = 0
) -> DetectorCalibration:
    """Threshold, true positive rate and AUC from labelled captions.

    Args:
        positives: (n,) scores of captions known to be memorized, n >= 5; one value a caption, never one a seed.
        negatives: (m,) scores of captions known not to be, m >= 19.
        detector: its name, for the record.
        fpr: wanted share of false alarms.
        seed: of the bootstrap.

    Raises:
        InputError: too few of either, or a score that is not finite.
    """
    scores = _finite(positives, "positives", MIN_POSITIVES)
    other = _finite(negatives, "negatives", MIN_NEGATIVES)
    threshold = threshold_at(list(other), fpr)
    hits = rate(int((scores > threshold.value).sum()), scores.size)
    return DetectorCalibration(detector, threshold, hits, auc(scores, other), _auc_interval(scores, other, seed))


def _auc_interval(scores: NDArray[np.float64], other: NDArray[np.float64], seed: int) -> Interval:
    """Percentile bootstrap; both classes are resampled."""
    wins = (scores[:, None] > other[None]) + 0.5 * (scores[:, None] == other[None])
    source = np.random.default_rng(seed)
    resampled = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = source.integers(0, scores.size, scores.size)
        columns = source.integers(0, other.size, other.size)
        resampled[i] = wins[rows][:, columns].mean()
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(low), float(high))


def _finite(values: Sequence[float], name: str, least: int) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if array.size < least:
        raise InputError(f"A detector is calibrated on at least {least} {name}, got {array.size}: add captions.")
    if not np.isfinite(array).all():
        raise InputError(f"Some {name} have no finite score: leave out what could not be scored, and count it.")
    return array
