"""The p-values of one similarity: by rank, by the controls' tail, by the suspects' bulk; and which of them decides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from typing_extensions import TypedDict

from diffkit.stats import rank_p_value
from memorization.auditing.controls import Scores, by_caption, by_kind, up_to
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

__all__ = ["Null", "NullSummary", "PValues", "PowerSummary", "caption_null", "power"]

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
        "deviations": least_deviations(tests, fitted, alpha=alpha),
    }


class PValues(NamedTuple):
    """p-values of one similarity.

    Attributes:
        rank: share of the controls, the suspect counted among them, at least as similar.
        tail: by the fitted tail of the controls, the largest over their kinds; None where none could be fitted.
        bulk: by the suspects' own bulk; None with fewer than 200, or where too few of them are null.
        kind: of the controls that gave ``tail``.
        family: of that fit.
    """

    rank: float
    tail: float | None = None
    bulk: float | None = None
    kind: str | None = None
    family: str | None = None

    @property
    def deciding(self) -> float:
        """The larger of tail and bulk; by rank where there is neither."""
        fitted = [p for p in (self.tail, self.bulk) if p is not None]
        return max(fitted) if fitted else self.rank

    @property
    def source(self) -> str:
        """In words where the deciding p-value comes from."""
        if self.tail is None and self.bulk is None:
            return "by rank"
        if self.tail is None or (self.bulk is not None and self.bulk > self.tail):
            return "by the suspects' bulk"
        return f"by the tail of the controls ({self.family})"


@dataclass(frozen=True)
class Null:
    """What similarities are expected of images that are not memorized.

    Attributes:
        controls: similarities of all controls.
        tails: kind of controls -> the tail fitted to theirs.
        bulk: the empirical null of the suspects, if it can be used.
        share: estimated share of null suspects, where it was estimated.
    """

    controls: Sequence[float]
    tails: Mapping[str, TailFit] = field(default_factory=dict)
    bulk: EmpiricalNull | None = None
    share: float | None = None

    @classmethod
    def of(
        cls, suspects: Sequence[Scores], controls: Sequence[Scores], budget: int | None, *, left_out: Collection[str]
    ) -> Null:
        """The null of one attack up to its pre-set budget.

        Args:
            suspects: those in ``left_out``, which their captions replicate, have no part in the bulk.
            controls: their scores.
            budget: the pre-set budget.
        """
        values = up_to(controls, budget)
        bulk = [value for key, value in up_to(suspects, budget).items() if key not in left_out]
        empirical = empirical_null(to_z(bulk).tolist())
        usable = empirical if empirical is not None and empirical.share > NULL_SHARE else None
        return cls(list(values.values()), _tails(values, controls), usable, empirical.share if empirical else None)

    def to_json(self) -> NullSummary:
        """As JSON values."""
        return {
            "tails": {kind: _tail_summary(fit) for kind, fit in self.tails.items()},
            "bulk": None if self.bulk is None else _bulk_summary(self.bulk),
            "share": self.share,
        }

    def p_values(self, similarity: float) -> PValues:
        """The p-values of one suspect's similarity.

        Raises:
            ValueError: there are no controls.
        """
        z = float(to_z(similarity))
        largest = largest_p(z, self.tails)
        tail, kind = largest if largest is not None else (None, None)
        return PValues(
            rank_p_value(similarity, self.controls),
            tail,
            self.bulk.p_value(z) if self.bulk is not None else None,
            kind,
            self.tails[kind].family if kind is not None else None,
        )


def caption_null(controls: Sequence[Scores]) -> Null:
    """The null of captions: similarities of the controls by their own captions."""
    values = by_caption(controls)
    return Null(list(values.values()), _tails(values, controls))


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


def _tails(values: Mapping[str, float], controls: Sequence[Scores]) -> dict[str, TailFit]:
    """A fit for each kind with enough controls; where no kind has, one of all."""
    groups = by_kind(values, controls)
    fits = {kind: fit_tail(to_z(group).tolist()) for kind, group in groups.items()}
    tails = {kind: fit for kind, fit in fits.items() if fit is not None}
    if tails or not values:
        return tails
    whole = fit_tail(to_z(list(values.values())).tolist())
    return {} if whole is None else {"controls": whole}
