"""From journal records to scores and figures: median over seeds, best start and learning rate, one attack at a time.

All are pure functions of the journal: each attack's curve and work, controls, edited controls, the reference model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, Literal, NamedTuple

from diffkit.stats import auc
from memorization.attack.ladder import rung_of
from memorization.auditing.controls import ControlCheck, Scores, rate
from memorization.auditing.kaplan_meier import kaplan_meier, log_rank, median_work, work_to_threshold
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

Record = Mapping[str, Any]
Aggregate = Literal["median", "maximum"]


def scores(key: str, record: Record, budgets: Sequence[int], rung: str, how: Aggregate = "median") -> Scores:
    """Aggregate one journal record over seeds, then take the best start and learning rate at each budget.

    The median over seeds is what verdicts rest on; the maximum is what labels of published lists rest on.
    """
    over = median if how == "median" else max
    caption = over(record["caption"]) if record["caption"] is not None else None
    curve = None
    variants = (record["attack"] or {}).get(rung)
    if variants is not None:
        columns = zip(*([over(row) for row in rows] for rows in variants.values()), strict=True)
        curve = dict(zip(budgets, (max(column) for column in columns), strict=True))
    ceiling = record["ceiling"][0] if record["ceiling"] else 1.0
    return Scores(key, caption, curve, record["reason"], ceiling)


def of_role(records: Mapping[str, Record], role: str, *, edit: str | None = None) -> dict[str, Record]:
    """The records of one role, and of one family of edits."""
    return {key: record for key, record in records.items() if record["role"] == role and record["edit"] == edit}


def aggregate(
    records: Mapping[str, Record], budgets: Sequence[int], rung: str, how: Aggregate = "median"
) -> list[Scores]:
    """:func:`scores` of many records."""
    return [scores(key, record, budgets, rung, how) for key, record in records.items()]


def ladder(records: Mapping[str, Record], budgets: Sequence[int], rungs: Iterable[str]) -> dict[str, Rung]:
    """What the verdicts are made from: by rung the suspects, the controls and, by suspect, the reference."""
    suspects, controls = of_role(records, "suspect"), of_role(records, "control")
    reference = {record["of"]: record for record in of_role(records, "reference").values()}
    return {
        rung: Rung(
            aggregate(suspects, budgets, rung),
            aggregate(controls, budgets, rung),
            {key: scores(key, record, budgets, rung) for key, record in reference.items()} or None,
        )
        for rung in rungs
    }


def detector_values(records: Mapping[str, Record], name: str) -> list[float]:
    """A detector's scores of captions, those that are known."""
    found = (record["detectors"].get(name, {}).get("value") for record in records.values())
    return [value for value in found if value is not None]


class Outcome(NamedTuple):
    """Verdicts on the suspects, and what the controls were found to carry under each attack, weak to strong."""

    findings: list[Finding]
    checks: dict[str, ControlCheck]

    @property
    def strongest(self) -> str:
        """The strongest attack whose controls hold; where none do, the strongest."""
        hold = [name for name, check in self.checks.items() if check.failure is None]
        return (hold or list(self.checks))[-1]


def conclude(records: Mapping[str, Record], settings: AuditSettings, *, threshold: float) -> Outcome:
    """Judge every suspect against the controls."""
    rungs = sorted(settings.attacks, key=rung_of)
    tested = ladder(records, settings.budgets, rungs)
    findings, checks = judge_ladder(tested, threshold=threshold, alpha=settings.alpha, correction=settings.correction)
    return Outcome(findings, checks)


def by_rung(
    name: str, records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float
) -> dict[str, Any]:
    """One attack: its controls, its curve, and the work it takes."""
    check = outcome.checks[name]
    suspects = aggregate(of_role(records, "suspect"), settings.budgets, name)
    controls = aggregate(of_role(records, "control"), settings.budgets, name)
    unscored = sum(c.caption is None for c in controls)
    works = {
        group: [work_to_threshold(one.curve, threshold) for one in found if one.curve is not None]
        for group, found in (("suspects", suspects), ("controls", controls))
    }
    steps = {group: kaplan_meier(found) for group, found in works.items()}
    return {
        "budget": check.budget,
        "controls": {**asdict(check), "total": len(controls), "unscored": unscored},
        "attack": [_at_budget(budget, suspects, controls, check, threshold) for budget in settings.budgets],
        "work": {
            **{group: [step._asdict() for step in found] for group, found in steps.items()},
            "median": {group: median_work(found) for group, found in steps.items()},
            "log_rank_p": log_rank(works["suspects"], works["controls"]),
        },
        "weakest_for": sum(finding.rung == name for finding in outcome.findings),
        "retained": sum(finding.rungs[name].verdict == "retained" for finding in outcome.findings),
    }


def _at_budget(
    budget: int, suspects: Sequence[Scores], controls: Sequence[Scores], check: ControlCheck, threshold: float
) -> dict[str, Any]:
    """Suspects against controls at one budget: rates, medians, AUC."""
    one = [s.curve[budget] for s in suspects if s.curve is not None]
    other = [c.curve[budget] for c in controls if c.curve is not None]
    return {
        "budget": budget,
        "suspects": asdict(rate(sum(s >= threshold for s in one), len(one))),
        "controls": asdict(check.by_budget[budget]) if budget in check.by_budget else None,
        "suspect_median": median(one) if one else None,
        "control_median": median(other) if other else None,
        "auc": auc(one, other) if one and other else None,
    }


def flagged(
    records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float
) -> dict[str, Any]:
    """Controls that come out of their caption, or come back under an attack at its pre-set budget."""
    controls = of_role(records, "control")
    found = set(_back_by_caption(controls, threshold))
    for name, check in outcome.checks.items():
        found |= set(_back(controls, settings, name, check.budget, threshold))
    scored = sum(record["caption"] is not None for record in controls.values())
    return {
        "flagged": asdict(rate(len(found), scored)),
        "flagged_keys": [key for key in controls if key in found],
    }


def _back_by_caption(records: Mapping[str, Record], threshold: float) -> list[str]:
    known = {key: record["caption"] for key, record in records.items() if record["caption"] is not None}
    return [key for key, values in known.items() if median(values) >= threshold]


def _back(
    records: Mapping[str, Record],
    settings: AuditSettings,
    rung: str,
    budget: int | None,
    threshold: float,
) -> list[str]:
    """Keys of those that an attack brings back at a budget."""
    if budget is None:
        return []
    every = aggregate(records, settings.budgets, rung)
    return [one.key for one in every if one.curve is not None and one.curve[budget] >= threshold]


def aggregation(
    records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float, how: Aggregate
) -> dict[str, Any]:
    """Shares by caption and at the strongest attack's pre-set budget, by one way to sum up seeds."""
    rung = outcome.strongest
    budget = outcome.checks[rung].budget
    found = {}
    for group, role in (("suspects", "suspect"), ("controls", "control")):
        every = aggregate(of_role(records, role), settings.budgets, rung, how)
        captions = [one.caption for one in every if one.caption is not None]
        curves = [one.curve[budget] for one in every if budget is not None and one.curve is not None]
        found[group] = {
            "caption": asdict(rate(sum(value >= threshold for value in captions), len(captions))),
            "attack": asdict(rate(sum(value >= threshold for value in curves), len(curves))),
        }
    return found


def edited(
    name: str, records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float
) -> dict[str, Any]:
    """One family of edited suspects under the strongest attack; never counted among the controls."""
    check, rung = outcome.checks[outcome.strongest], outcome.strongest
    family = of_role(records, "edit", edit=name)
    found = aggregate(family, settings.budgets, rung)
    suspects = aggregate(of_role(records, "suspect"), settings.budgets, rung)
    rows = [_at_budget(budget, suspects, found, check, threshold) for budget in settings.budgets]
    kept = ("budget", "control_median", "auc")
    return {
        "n": sum(one.curve is not None for one in found),
        "attack": [
            {key.replace("control", "edit"): row[key] for key in kept}
            | {"back": asdict(_share(found, row["budget"], threshold))}
            for row in rows
        ],
        "back": [family[key]["of"] for key in _back(family, settings, rung, check.budget, threshold)],
    }


def _share(found: Sequence[Scores], budget: int, threshold: float) -> Any:
    values = [one.curve[budget] for one in found if one.curve is not None]
    return rate(sum(value >= threshold for value in values), len(values))


def on_reference(
    records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float
) -> dict[str, Any] | None:
    """The same suspects, starts and seeds on the reference model; None without one."""
    there = of_role(records, "reference")
    if not there:
        return None
    attacks = {
        name: asdict(_share(aggregate(there, settings.budgets, name), check.budget, threshold))
        for name, check in outcome.checks.items()
        if check.budget is not None
    }
    captions = [record["caption"] for record in there.values() if record["caption"] is not None]
    by_caption = rate(sum(median(values) >= threshold for values in captions), len(captions))
    return {"caption": asdict(by_caption), "attack": attacks}
