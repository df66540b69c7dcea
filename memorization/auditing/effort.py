"""How far items are attacked: up to which budget, until which similarity, or not at all.

Controls are attacked at all budgets. They give the pre-set budget of each attack and its null, and with these the
effort on the suspects: up to that budget, and no further than the first look at which the answer is certain. A suspect
that its caption replicates needs no attack. The start itself, budget 0, is not looked at. With a reference model only
suspects that reach the threshold are tested, so that a median below it need not be known: once more than half of a
look's images lie below it, the others are not generated.

None of this changes a verdict: an answer is certain where the verdict on the item alone holds whatever the other
suspects give, and :func:`unsettled` finds those where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import TYPE_CHECKING

from memorization.auditing.controls import Scores, Stopped, check_controls, exceeds, up_to
from memorization.auditing.evidence import to_z
from memorization.auditing.p_values import Null, caption_null
from memorization.auditing.verdicts import Rung

if TYPE_CHECKING:
    from memorization.auditing.controls import Correction
    from memorization.auditing.verdicts import Finding, RungFinding

__all__ = ["Effort", "least_certain", "of_suspects", "unsettled"]


@dataclass(frozen=True)
class Effort:
    """How far items of one role are attacked; by default at all budgets.

    Attributes:
        limits: attack -> the last budget to look at; all of them for an attack that is not named.
        certain: attack -> the similarity from which the answer is certain, so that the attack ends at that look.
        caption: the similarity by caption from which no attack is needed; None = it always is.
        left_out: key -> why the item is not attacked.
        reason: what an end at ``certain`` is recorded as.
        settled: attack -> the similarity below which the median of a look need not be known.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    certain: Mapping[str, float] = field(default_factory=dict)
    caption: float | None = None
    left_out: Mapping[str, Stopped] = field(default_factory=dict)
    reason: Stopped = "certain"
    settled: Mapping[str, float] = field(default_factory=dict)

    def without(self, left_out: Mapping[str, Stopped]) -> Effort:
        """The same effort, but these items are not attacked."""
        return replace(self, left_out={**self.left_out, **left_out})

    def whole(self) -> Effort:
        """Up to the limits whatever the answers are, also where the caption gives the image."""
        return replace(self, certain={}, caption=None)

    def looks(self, rung: str, budgets: Sequence[int]) -> int:
        """How many of the budgets are looked at."""
        limit = self.limits.get(rung, budgets[-1])
        return sum(budget <= limit for budget in budgets)

    def stages(self, rung: str, budgets: Sequence[int]) -> list[tuple[int, int]]:
        """The looks as (first, end) between which the attack does not pause: all at once where nothing can stop it.

        Up to a limit the start is not among them.

        Example:
            >>> Effort({"dori": 25}, {"dori": 0.8}).stages("dori", (0, 1, 10, 25, 50))
            [(1, 2), (2, 3), (3, 4)]
            >>> Effort().stages("dori", (0, 1, 10, 25, 50))
            [(0, 5)]
        """
        looks = self.looks(rung, budgets)
        first = 1 if rung in self.limits else 0
        if rung not in self.certain:
            return [(first, looks)]
        return [(first, 2), *((look, look + 1) for look in range(2, looks))]

    def is_certain(self, rung: str, looks: Iterable[Sequence[float]]) -> bool:
        """Whether the median of some start and learning rate reaches the certain similarity.

        Args:
            rung: the attack.
            looks: of each start and learning rate the similarities at its last look.
        """
        least = self.certain.get(rung)
        return least is not None and any(median(similarity) >= least for similarity in looks)

    def skips(self, key: str, caption: float | None) -> Stopped | None:
        """Why an item is not attacked at all; None where it is."""
        if self.caption is not None and caption is not None and caption >= self.caption:
            return "caption"
        return self.left_out.get(key)


def least_certain(null: Null, *, threshold: float, alpha: float, tests: int, reference: float = 0.0) -> float | None:
    """The least similarity at which a suspect is retained whatever the other suspects give; None where none is.

    At or above the threshold, rank p <= alpha, and deciding p <= alpha / tests: Bonferroni's bound, below which
    Benjamini-Hochberg and Holm reject too.

    Args:
        null: of the controls; of their differences to the reference model, if there is one.
        reference: z of the suspect on the reference model, as it is expected; see :func:`not_borne_out`.
        threshold: the copy detector's.
        alpha: level of the corrected p-values.
        tests: suspects times attacks; 1 without a correction.

    Example:
        >>> from memorization.auditing.controls import Scores
        >>> controls = [Scores(str(i), curve={10: 0.1 + 0.01 * i}) for i in range(30)]
        >>> null = Null.of((), controls, 10, left_out=())
        >>> round(least_certain(null, threshold=0.5, alpha=0.05, tests=100), 2)
        0.63
    """

    def holds(similarity: float) -> bool:
        p = null.p_values(float(to_z(similarity)) - reference)
        return p.rank <= alpha and p.deciding <= alpha / max(tests, 1)

    return _least(holds, threshold)


def _least_caption(null: Null, threshold: float, level: float) -> float | None:
    """The least similarity by caption that is replicated for certain; without a fit there is no test."""
    return _least(lambda value: not null.tails or null.p_values(float(to_z(value))).deciding <= level, threshold)


def _least(holds: Callable[[float], bool], low: float) -> float | None:
    """The least similarity from ``low`` to 1 at which a condition holds that only gets better; None where none does."""
    if holds(low):
        return low
    high = 1.0
    if not holds(high):
        return None
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def of_suspects(
    controls: Mapping[str, Sequence[Scores]],
    on_reference: Mapping[str, Mapping[str, Scores] | None],
    *,
    threshold: float,
    alpha: float,
    correction: Correction,
    suspects: int,
) -> Effort:
    """The effort on the suspects, from the controls' scores under each attack.

    With a reference model an answer seems certain where it would be if the suspect came as near on the reference as the
    nearest of the controls does. Under an attack whose controls are unusable no verdict can be given; it goes on to the
    last budget for its curves.

    Args:
        controls: their scores, by attack.
        on_reference: their scores on the reference model, by attack and key; None without one.
        threshold: the copy detector's.
        alpha: level of the corrected p-values.
        correction: for many suspects.
        suspects: how many there are.
    """
    checks = {name: check_controls(scores, threshold=threshold, alpha=alpha) for name, scores in controls.items()}
    limits = {name: check.budget for name, check in checks.items() if check.failure is None and check.budget}
    tests = 1 if correction == "none" else suspects
    bounds: dict[str, float | None] = {}
    settled: dict[str, float] = {}
    for name, limit in limits.items():
        null = Rung((), controls[name], None, on_reference.get(name)).null(limit, replicated=())
        differs = null.statistic == "difference"
        if differs:
            settled[name] = threshold
        nearest = up_to(list((on_reference.get(name) or {}).values()), limit) if differs else {}
        bounds[name] = least_certain(
            null,
            threshold=threshold,
            alpha=alpha,
            tests=tests if correction == "none" else suspects * len(checks),
            reference=float(to_z(max(nearest.values(), default=0.0))),
        )
    first = next(iter(controls))
    usable = not exceeds(checks[first].caption, alpha)
    caption = _least_caption(caption_null(controls[first]), threshold, alpha / max(tests, 1)) if usable else None
    certain = {name: bound for name, bound in bounds.items() if bound is not None}
    return Effort(limits, certain, caption, settled=settled)


def unsettled(
    findings: Sequence[Finding], scores: Mapping[str, Sequence[Scores]], budgets: Mapping[str, int | None]
) -> list[str]:
    """Keys of the suspects whose attack ended for a reason that does not hold, or before the pre-set budget.

    Before they are put before the reference model, if there is one: see :func:`not_borne_out` for after that.

    The first happens where the suspects' own bulk is a stricter null than the controls, the second where controls that
    were in error were scored after the suspects.

    Args:
        findings: the verdicts without suspects on the reference model.
        scores: of the suspects, in the same order, by attack.
        budgets: the pre-set budget of each attack.
    """
    keys = []
    for index, finding in enumerate(findings):
        for name, budget in budgets.items():
            score = scores[name][index]
            if score.skipped == "caption":
                holds = finding.verdict == "replicated"
            elif score.stopped:
                rung = finding.rungs.get(name)
                holds = rung is not None and (rung.verdict == "retained" or _untested(rung))
            else:
                holds = score.curve is None or budget is None or max(score.curve) >= budget
            if not holds:
                keys.append(finding.key)
                break
    return keys


def not_borne_out(findings: Sequence[Finding], scores: Mapping[str, Sequence[Scores]]) -> list[str]:
    """Keys of the suspects whose attack ended as certain, but whose difference to the reference model is too small.

    At an early look the difference is at most what it is at the pre-set budget, so that those it is large enough for
    there are retained at the budget too. Those that the reference draws, or that could not be scored on it, are not
    retained whatever the difference.

    Args:
        findings: the verdicts.
        scores: of the suspects, in the same order, by attack.
    """
    return [
        finding.key
        for index, finding in enumerate(findings)
        if any(
            scores[name][index].stopped and rung.verdict != "retained" and not _untested(rung)
            for name, rung in finding.rungs.items()
        )
    ]


def _untested(rung: RungFinding) -> bool:
    """Whether an attack brings a suspect back, but its difference to the reference model was not tested."""
    return rung.similarity is not None and rung.p is None
