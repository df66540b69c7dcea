"""From the journal to conclusions: aggregate seeds, judge, count. Pure functions of what the journal holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, NamedTuple

from diffkit.prompts import RowError
from diffkit.stats import auc
from memorization.controls import VERDICTS, ControlCheck, Finding, Scores, judge, rate
from memorization.settings import AuditSettings

Record = Mapping[str, Any]


class Outcome(NamedTuple):
    """Verdicts on the suspects, and what the controls were found to carry."""

    findings: list[Finding]
    check: ControlCheck


def scores(key: str, record: Record, budgets: Sequence[int]) -> Scores:
    """Aggregate one journal record: median over seeds, then the best start at each budget."""
    caption = median(record["caption"]) if record["caption"] is not None else None
    curve = None
    if record["attack"] is not None:
        medians = [[median(row) for row in rows] for rows in record["attack"].values()]
        curve = dict(zip(budgets, (max(column) for column in zip(*medians, strict=True)), strict=True))
    ceiling = record["ceiling"][0] if record["ceiling"] else 1.0
    return Scores(key, caption, curve, record["reason"], ceiling)


def conclude(records: Mapping[str, Record], settings: AuditSettings, *, threshold: float) -> Outcome:
    """Judge every suspect against the controls."""
    suspects, controls = split(records, settings.budgets)
    findings, check = judge(
        suspects, controls, threshold=threshold, alpha=settings.alpha, correction=settings.correction
    )
    return Outcome(findings, check)


def split(records: Mapping[str, Record], budgets: Sequence[int]) -> tuple[list[Scores], list[Scores]]:
    """Scores of the suspects and of the controls."""
    every = [(record["role"], scores(key, record, budgets)) for key, record in records.items()]
    return [s for role, s in every if role == "suspect"], [s for role, s in every if role == "control"]


def summarise(
    records: Mapping[str, Record],
    settings: AuditSettings,
    *,
    operating_point: Mapping[str, Any],
    suspect_errors: Sequence[RowError] = (),
    control_errors: Sequence[RowError] = (),
) -> dict[str, Any]:
    """All figures of an audit as JSON values; no dates and no durations, so that the same audit gives the same file.

    Args:
        records: journal records by key, in the order of the items.
        settings: the audit's settings.
        operating_point: the copy detector's calibration, with its ``threshold``.
        suspect_errors: rows that could not be read; counted as "could not be scored".
        control_errors: the same of the controls; reported.
    """
    outcome = conclude(records, settings, threshold=operating_point["threshold"])
    unreadable = len(suspect_errors)
    total = len(outcome.findings) + unreadable
    counts = {verdict: sum(f.verdict == verdict for f in outcome.findings) for verdict in VERDICTS}
    counts["could not be scored"] += unreadable
    return {
        "suspects": total,
        "verdicts": counts,
        "rates": {verdict: asdict(rate(count, total)) for verdict, count in counts.items()},
        "by_kind": _by_kind(records, outcome.findings),
        "budget": outcome.check.budget,
        "controls": _controls(records, settings, outcome.check, operating_point["threshold"]),
        "attack": _by_budget(records, settings, outcome, operating_point["threshold"]),
        settings.detector: _detector(records, settings),
        "operating_point": dict(operating_point),
        "findings": [_finding(f, records[f.key], operating_point["threshold"]) for f in outcome.findings],
        "unreadable": [{"of": "suspects", **error._asdict()} for error in suspect_errors]
        + [{"of": "controls", **error._asdict()} for error in control_errors],
        "cost": {
            "sample_gradients": sum(record["sample_gradients"] for record in records.values()),
            "caption_images": len(records) * settings.generations,
            "trigger_images": _trigger_images(records),
        },
        "settings": settings.to_json(),
    }


def items_in_error(summary: Mapping[str, Any]) -> int:
    """Suspects and controls for which something could not be scored or read."""
    unreadable_controls = sum(row["of"] == "controls" for row in summary["unreadable"])
    return int(summary["verdicts"]["could not be scored"] + summary["controls"]["unscored"] + unreadable_controls)


def _finding(finding: Finding, record: Record, threshold: float) -> dict[str, Any]:
    """A finding with what its median leaves out: how many seeds reach the threshold, and the best of them."""
    seeds = record["caption"] or []
    return {
        **asdict(finding),
        "kind": record["kind"],
        "seeds": len(seeds),
        "seeds_at_threshold": sum(value >= threshold for value in seeds),
        "caption_max": max(seeds, default=None),
    }


def _by_kind(records: Mapping[str, Record], findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for finding in findings:
        row = table.setdefault(records[finding.key]["kind"] or "unnamed", dict.fromkeys(VERDICTS, 0))
        row[finding.verdict] += 1
    return table


def _controls(
    records: Mapping[str, Record], settings: AuditSettings, check: ControlCheck, threshold: float
) -> dict[str, Any]:
    """The check, and how many controls would be flagged as anything at the pre-set budget."""
    _, controls = split(records, settings.budgets)
    flagged = [c.key for c in controls if _flagged(c, check.budget, threshold)]
    unscored = sum(c.caption is None for c in controls)
    return {
        **asdict(check),
        "total": len(controls),
        "unscored": unscored,
        "flagged": asdict(rate(len(flagged), len(controls) - unscored)),
        "flagged_keys": flagged,
    }


def _flagged(control: Scores, budget: int | None, threshold: float) -> bool:
    by_caption = control.caption is not None and control.caption >= threshold
    by_attack = budget is not None and control.curve is not None and control.curve[budget] >= threshold
    return by_caption or by_attack


def _by_budget(
    records: Mapping[str, Record], settings: AuditSettings, outcome: Outcome, threshold: float
) -> list[dict[str, Any]]:
    """Suspects against controls at each budget: rates, medians, AUC."""
    suspects, controls = split(records, settings.budgets)
    rows = []
    for budget in settings.budgets:
        one = [s.curve[budget] for s in suspects if s.curve is not None]
        other = [c.curve[budget] for c in controls if c.curve is not None]
        rows.append(
            {
                "budget": budget,
                "suspects": asdict(rate(sum(s >= threshold for s in one), len(one))),
                "controls": asdict(outcome.check.by_budget[budget]) if budget in outcome.check.by_budget else None,
                "suspect_median": median(one) if one else None,
                "control_median": median(other) if other else None,
                "auc": auc(one, other) if one and other else None,
            }
        )
    return rows


def _detector(records: Mapping[str, Record], settings: AuditSettings) -> dict[str, Any]:
    """How well the detector tells suspects from controls, on means over seeds."""
    means: dict[str, list[float]] = {"suspect": [], "control": []}
    for record in records.values():
        values = record[settings.detector]
        if values is not None:
            means[record["role"]].append(sum(values) / len(values))
    one, other = means["suspect"], means["control"]
    known = bool(one and other)
    return {"suspects": len(one), "controls": len(other), "auc": auc(one, other) if known else None}


def _trigger_images(records: Mapping[str, Record]) -> int:
    curves = [rows for record in records.values() for rows in (record["attack"] or {}).values()]
    return sum(len(row) for rows in curves for row in rows)
