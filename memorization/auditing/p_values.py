"""The p-values of one suspect: by rank, by the controls' tail, by the suspects' bulk; and which of them decides.

A suspect is judged by one number. With a reference model whose controls were attacked too it is the *difference*,
z = atanh(similarity) less the z of the same attack on the reference; otherwise the similarity's z alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from typing_extensions import TypedDict

from diffkit.stats import rank_p_value
from memorization.auditing.controls import Scores, by_caption, by_kind, fewest_controls, up_to
from memorization.auditing.empirical_null import EmpiricalNull, empirical_null
from memorization.auditing.evidence import (
    FEWEST,
    TailFit,
    controls_needed,
    fit_tail,
    largest_p,
    least_deviations,
    to_z,
)

__all__ = ["Null", "NullSummary", "PValues", "PowerSummary", "as_z", "caption_null", "differences", "power"]

Statistic = Literal["similarity", "difference"]
ALIKE_LEVEL = 0.05  # of the test whether kinds of controls differ
NULL_SHARE = 0.8  # of the suspects that have to be null for their bulk to be the null


class TailSummary(TypedDict):
    """A :class:`~memorization.auditing.evidence.TailFit` as JSON, without its values."""

    family: str
    n: int
    location: float
    scale: float
    shape: float
    normality_p: float


class NullSummary(TypedDict):
    """A :class:`Null` as JSON: the fits by kind of controls; those of the suspects' bulk, where it is used."""

    statistic: Statistic
    tails: dict[str, TailSummary]
    bulk: dict[str, float] | None
    share: float | None


class PowerSummary(TypedDict):
    """What the controls can show: so many tests, of suspects under attacks, against so many controls.

    ``by_rank``: controls with which a single memorized image among the suspects could be called by rank;
    ``deviations``: how many of the controls' standard deviations above their mean it has to lie by their normal tail.
    """

    tests: int
    controls: int
    by_rank: int | None
    deviations: float | None


def power(tests: int, kinds: Collection[int], alpha: float) -> PowerSummary:
    """The power of an audit before it runs.

    Args:
        tests: suspects times attacks.
        kinds: how many controls there are of each kind; the smallest kind with 10 or more decides, or all together
            where there is none.
        alpha: level of the corrected p-values.

    Example:
        >>> power(500, [30], 0.05)["by_rank"]
        9999
    """
    controls = sum(kinds)
    fitted = min((n for n in kinds if n >= FEWEST), default=controls)
    return {
        "tests": tests,
        "controls": controls,
        "by_rank": controls_needed(tests, alpha=alpha) if tests else None,
        "deviations": least_deviations(tests, fitted, alpha=alpha) if controls >= fewest_controls(alpha) else None,
    }


class PValues(NamedTuple):
    """p-values of one suspect.

    Attributes:
        rank: share of the controls, the suspect counted among them, at least as far out.
        tail: by the fitted tail of the controls, the largest over their kinds; None where none could be fitted.
        bulk: by the suspects' own bulk; None with fewer than 200, or where too few of them are null.
        kind: of the controls that gave ``tail``.
        family: of that fit.
        statistic: what was compared: the similarity, or the difference to the reference model.
    """

    rank: float
    tail: float | None = None
    bulk: float | None = None
    kind: str | None = None
    family: str | None = None
    statistic: Statistic = "similarity"

    @property
    def far(self) -> str:
        """What controls are that lie as far out, in words."""
        return "similar" if self.statistic == "similarity" else "far above the reference model"

    @property
    def deciding(self) -> float:
        """The larger of tail and bulk; by rank where there is neither."""
        fitted = [p for p in (self.tail, self.bulk) if p is not None]
        return max(fitted) if fitted else self.rank

    @property
    def source(self) -> str:
        """In words where the deciding p-value comes from."""
        whose = "controls" if self.statistic == "similarity" else "controls' differences to the reference model"
        if self.tail is None and self.bulk is None:
            return "by rank" if self.statistic == "similarity" else f"by rank of the {whose}"
        if self.tail is None or (self.bulk is not None and self.bulk > self.tail):
            return "by the suspects' bulk"
        return f"by the tail of the {whose} ({self.family})"


@dataclass(frozen=True)
class Null:
    """What is expected of images that are not memorized.

    Attributes:
        controls: the statistic of all controls.
        tails: kind of controls -> the tail fitted to theirs.
        bulk: the empirical null of the suspects, if it can be used.
        share: estimated share of null suspects, where it was estimated.
        statistic: z of the similarity, or its difference to that on the reference model.
    """

    controls: Sequence[float]
    tails: Mapping[str, TailFit] = field(default_factory=dict)
    bulk: EmpiricalNull | None = None
    share: float | None = None
    statistic: Statistic = "similarity"

    @classmethod
    def of(
        cls, suspects: Sequence[Scores], controls: Sequence[Scores], budget: int | None, *, left_out: Collection[str]
    ) -> Null:
        """The null of similarities under one attack up to its pre-set budget.

        Controls of several kinds (scenes, photographs) are never pooled, since the bulk of an easy kind would make the
        harder kind's ordinary similarities look extreme.

        Args:
            suspects: those in ``left_out``, which their captions replicate, have no part in the bulk.
            controls: their scores.
            budget: the pre-set budget.
        """
        z = as_z(up_to(controls, budget))
        bulk = [value for key, value in as_z(up_to(suspects, budget)).items() if key not in left_out]
        empirical = empirical_null(bulk)
        usable = empirical if empirical is not None and empirical.share > NULL_SHARE else None
        return cls(list(z.values()), _tails(z, controls), usable, empirical.share if empirical else None)

    @classmethod
    def of_differences(cls, controls: Sequence[Scores], on_reference: Mapping[str, Scores], budget: int | None) -> Null:
        """The null of differences to the reference model, up to the pre-set budget.

        How easy an image is to draw is the same on both models and cancels, and kinds of controls with it: they are
        pooled unless they differ (Anderson-Darling test of several samples at 0.05; Scholz and Stephens, JASA 1987).
        """
        values = differences(controls, on_reference, budget)
        return cls(list(values.values()), _tails(values, controls, pooled_if_alike=True), statistic="difference")

    def to_json(self) -> NullSummary:
        """As JSON values."""
        return {
            "statistic": self.statistic,
            "tails": {kind: _tail_summary(fit) for kind, fit in self.tails.items()},
            "bulk": None if self.bulk is None else _bulk_summary(self.bulk),
            "share": self.share,
        }

    def p_values(self, z: float) -> PValues:
        """The p-values of one suspect's z, or difference.

        Raises:
            ValueError: there are no controls.
        """
        largest = largest_p(z, self.tails)
        tail, kind = largest if largest is not None else (None, None)
        return PValues(
            rank_p_value(z, self.controls),
            tail,
            self.bulk.p_value(z) if self.bulk is not None else None,
            kind,
            self.tails[kind].family if kind is not None else None,
            self.statistic,
        )


def as_z(similarities: Mapping[str, float]) -> dict[str, float]:
    """Key -> z = atanh(similarity)."""
    return dict(zip(similarities, to_z(list(similarities.values())).tolist(), strict=True))


def differences(items: Sequence[Scores], on_reference: Mapping[str, Scores], budget: int | None) -> dict[str, float]:
    """Key -> z up to a budget, less that of the same item on the reference model; of those scored on both."""
    z = as_z(up_to(items, budget))
    other = as_z(up_to(list(on_reference.values()), budget))
    pairs = {key: scores.key for key, scores in on_reference.items()}
    return {key: value - other[pairs[key]] for key, value in z.items() if pairs.get(key) in other}


def caption_null(controls: Sequence[Scores]) -> Null:
    """The null of captions: similarities of the controls by their own captions."""
    z = as_z(by_caption(controls))
    return Null(list(z.values()), _tails(z, controls))


def _tail_summary(fit: TailFit) -> TailSummary:
    return {
        "family": fit.family,
        "n": fit.n,
        "location": fit.location,
        "scale": fit.scale,
        "shape": fit.shape,
        "normality_p": fit.normality_p,
    }


def _bulk_summary(bulk: EmpiricalNull) -> dict[str, float]:
    return {"n": bulk.n, "mean": bulk.mean, "sd": bulk.sd, "freedom": bulk.freedom}


def _tails(
    values: Mapping[str, float], controls: Sequence[Scores], *, pooled_if_alike: bool = False
) -> dict[str, TailFit]:
    """A fit for each kind with enough controls; one of all where no kind has enough, or all are alike."""
    groups = by_kind(values, controls)
    fits = {} if pooled_if_alike and _alike(list(groups.values())) else {k: fit_tail(v) for k, v in groups.items()}
    tails = {kind: fit for kind, fit in fits.items() if fit is not None}
    if tails or not values:
        return tails
    whole = fit_tail(list(values.values()))
    return {} if whole is None else {"controls": whole}


def _alike(groups: Sequence[Sequence[float]]) -> bool:
    """Whether samples of two values or more may all come from one distribution."""
    from scipy import stats

    samples = [group for group in groups if len(group) > 1]
    if len(samples) < 2 or len(set(itertools.chain(*samples))) == 1:
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # p-values beyond those of its table are cut off
        return float(stats.anderson_ksamp(samples).pvalue) > ALIKE_LEVEL
