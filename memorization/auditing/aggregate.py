"""From journal records to scores and figures: median over seeds, best start and learning rate, one attack at a time.

Everything here is a pure function of the journal. :func:`scores` is the only place that aggregates over seeds and
starts; every rate counts what :func:`~memorization.auditing.controls.share_reaching` counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from diffkit.stats import Rate, auc, rate
from memorization.attack.ladder import rung_of
from memorization.auditing.controls import ControlCheck, Scores, by_caption, share_reaching, up_to
from memorization.auditing.kaplan_meier import Step, kaplan_meier, log_rank, median_work, work_to_threshold
from memorization.auditing.p_values import Null, power
from memorization.auditing.result import (
    Aggregate,
    AggregationSummary,
    AuditRecord,
    BudgetRow,
    ControlSummary,
    EditSummary,
    GroupShares,
    ReferenceSummary,
    RungSummary,
    SurvivalStep,
    WorkSummary,
)
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import Finding, Rung, judge_ladder
from memorization.items import EditName, Role

Records = Mapping[str, AuditRecord]
AGGREGATES: Mapping[Aggregate, Callable[[Iterable[float]], float]] = {"median": median, "maximum": max}


def scores(key: str, record: AuditRecord, budgets: Sequence[int], rung: str, how: Aggregate = "median") -> Scores:
    """Aggregate one journal record over seeds, then take the best start and learning rate at each budget.

    Verdicts use the median over seeds; the labels of published lists use the maximum.
    """
    over = AGGREGATES[how]
    caption = over(record["caption"]) if record["caption"] is not None else None
    curve = None
    variants = (record["attack"] or {}).get(rung)
    if variants is not None:
        looks = zip(*variants.values(), strict=True)  # an attack may end early, and leave out the start
        curve = {budget: max(map(over, rows)) for budget, rows in zip(budgets, looks, strict=False) if all(rows)}
    ceiling = record["ceiling"][0] if record["ceiling"] else 1.0
    reason = (record.get("stopped") or {}).get(rung)
    stopped, skipped = reason is not None and curve is not None, reason if curve is None else None
    return Scores(key, caption, curve, record["reason"], ceiling, record["kind"], stopped, skipped)


def last_look(record: AuditRecord, rung: str, budget: int | None) -> str | None:
    """The last look of one attack that has a picture, up to a budget: an attack may have ended early."""
    looks = [int(look) for look in record["best"].get(rung, {}) if budget is None or int(look) <= budget]
    return str(max(looks)) if looks else None


def of_role(records: Records, role: Role, *, edit: EditName | None = None) -> dict[str, AuditRecord]:
    """The records of one role, and of one family of edits."""
    return {key: record for key, record in records.items() if record["role"] == role and record["edit"] == edit}


def aggregate(records: Records, budgets: Sequence[int], rung: str, how: Aggregate = "median") -> list[Scores]:
    """:func:`scores` of many records."""
    return [scores(key, record, budgets, rung, how) for key, record in records.items()]


def of_originals(records: Records, role: Role, budgets: Sequence[int], rung: str) -> dict[str, Scores] | None:
    """Scores on the reference model by the keys of the items they were made from; None without any."""
    made = {record["of"]: scores(key, record, budgets, rung) for key, record in of_role(records, role).items()}
    return {key: score for key, score in made.items() if key is not None} or None


def scores_of_rung(records: Records, budgets: Sequence[int], name: str) -> Rung:
    """Everybody's scores under one attack."""
    return Rung(
        aggregate(of_role(records, "suspect"), budgets, name),
        aggregate(of_role(records, "control"), budgets, name),
        of_originals(records, "reference", budgets, name),
        of_originals(records, "reference_control", budgets, name),
    )


def detector_values(records: Records, name: str) -> list[float]:
    """A detector's scores of captions, without the unknown ones."""
    scored = (record["detectors"][name]["value"] for record in records.values() if name in record["detectors"])
    return [value for value in scored if value is not None]


class Outcome(NamedTuple):
    """The verdicts on the suspects, the check of the controls and the null under each attack, weak to strong."""

    findings: list[Finding]
    checks: dict[str, ControlCheck]
    nulls: dict[str, Null]

    @property
    def strongest(self) -> str:
        """The strongest attack with usable controls; without any, the strongest."""
        usable = [name for name, check in self.checks.items() if check.failure is None]
        return (usable or list(self.checks))[-1]


def conclude(records: Records, settings: AuditSettings, *, threshold: float) -> Outcome:
    """Judge every suspect against the controls."""
    rungs = {name: scores_of_rung(records, settings.budgets, name) for name in sorted(settings.attacks, key=rung_of)}
    return Outcome(*judge_ladder(rungs, threshold=threshold, alpha=settings.alpha, correction=settings.correction))


def by_rung(name: str, records: Records, settings: AuditSettings, outcome: Outcome, threshold: float) -> RungSummary:
    """One attack: its controls, its curve, and the steps it takes."""
    check = outcome.checks[name]
    suspects = aggregate(of_role(records, "suspect"), settings.budgets, name)
    controls = aggregate(of_role(records, "control"), settings.budgets, name)
    return {
        "budget": check.budget,
        "controls": _controls(check, controls),
        "attack": [_at_budget(budget, suspects, controls, check, threshold) for budget in settings.budgets],
        "work": _work(suspects, controls, threshold),
        "weakest_for": sum(finding.rung == name for finding in outcome.findings),
        "null": outcome.nulls[name].to_json(),
        "power": power(len(suspects) * len(outcome.checks), _kinds(controls), settings.alpha),
        "retained": sum(name in f.rungs and f.rungs[name].verdict == "retained" for f in outcome.findings),
    }


def _kinds(controls: Sequence[Scores]) -> list[int]:
    """How many controls of each kind were attacked."""
    return list(Counter(control.kind for control in controls if control.curve is not None).values())


def _controls(check: ControlCheck, controls: Sequence[Scores]) -> ControlSummary:
    return {
        "n": check.n,
        "caption": check.caption,
        "by_budget": {str(budget): back for budget, back in check.by_budget.items()},
        "budget": check.budget,
        "smallest_p": check.smallest_p,
        "failure": check.failure,
        "total": len(controls),
        "unscored": len(controls) - len(by_caption(controls)),
    }


def _work(suspects: Sequence[Scores], controls: Sequence[Scores], threshold: float) -> WorkSummary:
    """Attack steps until an image is reproduced, of both groups."""
    works = [
        [work_to_threshold(item.curve, threshold) for item in group if item.curve is not None]
        for group in (suspects, controls)
    ]
    curves = [kaplan_meier(group) for group in works]
    return {
        "suspects": [_survival_step(step) for step in curves[0]],
        "controls": [_survival_step(step) for step in curves[1]],
        "median": {"suspects": median_work(curves[0]), "controls": median_work(curves[1])},
        "log_rank_p": log_rank(*works),
    }


def _survival_step(step: Step) -> SurvivalStep:
    return {
        "work": step.work,
        "at_risk": step.at_risk,
        "back": step.back,
        "share": step.share,
        "low": step.low,
        "high": step.high,
    }


def _at_budget(
    budget: int, suspects: Sequence[Scores], controls: Sequence[Scores], check: ControlCheck, threshold: float
) -> BudgetRow:
    """Suspects against controls at one budget: rates, medians, AUC."""
    positives, negatives = (list(up_to(group, budget).values()) for group in (suspects, controls))
    return {
        "budget": budget,
        "suspects": share_reaching(threshold, positives),
        "controls": check.by_budget.get(budget),
        "suspect_median": median(positives) if positives else None,
        "control_median": median(negatives) if negatives else None,
        "auc": auc(positives, negatives) if positives and negatives else None,
    }


def flagged_controls(
    records: Records, settings: AuditSettings, outcome: Outcome, threshold: float
) -> tuple[Rate, list[str]]:
    """Controls reproduced by their caption, or by an attack at its pre-set budget: how many, and which."""
    controls = of_role(records, "control")
    flagged: set[str] = set()
    captions: dict[str, float] = {}
    for name, check in outcome.checks.items():
        items = aggregate(controls, settings.budgets, name)
        captions = by_caption(items)
        flagged |= _reaching(threshold, captions) | _reaching(threshold, up_to(items, check.budget))
    return rate(len(flagged), len(captions)), [key for key in controls if key in flagged]


def _reaching(threshold: float, similarities: Mapping[str, float]) -> set[str]:
    return {key for key, similarity in similarities.items() if similarity >= threshold}


def aggregation(
    records: Records, settings: AuditSettings, outcome: Outcome, threshold: float, how: Aggregate
) -> AggregationSummary:
    """Shares by caption and at the strongest attack's pre-set budget, by one way to aggregate over seeds."""
    rung = outcome.strongest
    budget = outcome.checks[rung].budget

    def shares(role: Role) -> GroupShares:
        items = aggregate(of_role(records, role), settings.budgets, rung, how)
        return {
            "caption": share_reaching(threshold, by_caption(items).values()),
            "attack": share_reaching(threshold, up_to(items, budget).values()),
        }

    return {"suspects": shares("suspect"), "controls": shares("control")}


def edited(
    name: EditName, records: Records, settings: AuditSettings, outcome: Outcome, threshold: float
) -> EditSummary:
    """One family of edited suspects under the strongest attack; never counted among the controls."""
    check, rung = outcome.checks[outcome.strongest], outcome.strongest
    family = of_role(records, "edit", edit=name)
    edits = aggregate(family, settings.budgets, rung)
    suspects = aggregate(of_role(records, "suspect"), settings.budgets, rung)
    rows = [_at_budget(budget, suspects, edits, check, threshold) for budget in settings.budgets]
    back = _reaching(threshold, up_to(edits, check.budget))
    return {
        "n": sum(item.curve is not None for item in edits),
        "attack": [
            {
                "budget": row["budget"],
                "edit_median": row["control_median"],
                "auc": row["auc"],
                "back": share_reaching(threshold, up_to(edits, row["budget"]).values()),
            }
            for row in rows
        ],
        "back": [record["of"] for key, record in family.items() if key in back and record["of"] is not None],
    }


def on_reference(
    records: Records, settings: AuditSettings, outcome: Outcome, threshold: float
) -> ReferenceSummary | None:
    """The same suspects, starts and seeds on the reference model; None without one."""
    reference = of_role(records, "reference")
    if not reference:
        return None
    by_attack = {name: aggregate(reference, settings.budgets, name) for name in outcome.checks}
    return {
        "caption": share_reaching(threshold, by_caption(by_attack[outcome.strongest]).values()),
        "attack": {
            name: share_reaching(threshold, up_to(by_attack[name], check.budget).values())
            for name, check in outcome.checks.items()
            if check.budget is not None
        },
    }
