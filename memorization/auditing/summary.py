"""From the journal to conclusions: judge, count, compare with the controls. Pure functions of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffkit.stats import auc, tpr_at_fpr
from diffkit.suspects import RowError
from memorization.auditing.aggregate import (
    Record,
    aggregation,
    by_rung,
    conclude,
    detector_values,
    edited,
    flagged,
    of_role,
    on_reference,
    scores,
)
from memorization.auditing.controls import rate
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import VERDICTS, Finding, Verdict

#: Versions of what an audit writes; a reader refuses others.
SUMMARY_SCHEMA = 2
RECORD_SCHEMA = 2  # of the items in the journal; part of the configuration, so that an older folder is refused


def summarise(
    records: Mapping[str, Record],
    settings: AuditSettings,
    *,
    operating_point: Mapping[str, Any],
    labels: Mapping[str, int] | None = None,
    suspect_errors: Sequence[RowError] = (),
    control_errors: Sequence[RowError] = (),
) -> dict[str, Any]:
    """All figures of an audit as JSON values; no dates and no durations, so that the same audit gives the same file.

    Args:
        records: journal records by key, in the order of the items.
        settings: the audit's settings.
        operating_point: the copy detector's calibration, with its ``threshold``.
        labels: cluster of near-duplicates by key of suspects and controls; None = everyone is alone.
        suspect_errors: rows that could not be read; counted as "could not be scored".
        control_errors: the same of the controls; reported.
    """
    threshold = operating_point["threshold"]
    outcome = conclude(records, settings, threshold=threshold)
    rungs = {name: by_rung(name, records, settings, outcome, threshold) for name in outcome.checks}
    counts = {verdict: sum(f.verdict == verdict for f in outcome.findings) for verdict in VERDICTS}
    counts["could not be scored"] += len(suspect_errors)
    main = rungs[outcome.strongest]
    return {
        "suspects": len(outcome.findings) + len(suspect_errors),
        "verdicts": counts,
        "rates": _rates(counts),
        "clusters": _clusters(outcome.findings, labels or {}, len(suspect_errors)),
        "by_kind": _by_kind(records, outcome.findings),
        "rung": outcome.strongest,
        "budget": main["budget"],
        "controls": main["controls"] | flagged(records, settings, outcome, threshold),
        "attack": main["attack"],
        "rungs": rungs,
        "aggregation": {how: aggregation(records, settings, outcome, threshold, how) for how in ("median", "maximum")},
        "edits": {name: edited(name, records, settings, outcome, threshold) for name in settings.edits},
        "reference": on_reference(records, settings, outcome, threshold),
        "detectors": {name: _detector(records, name) for name in settings.detectors},
        "operating_point": dict(operating_point),
        "findings": [_finding(f, records[f.key], settings, threshold) for f in outcome.findings],
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


def _rates(counts: Mapping[Verdict, int]) -> dict[str, Any]:
    total = sum(counts.values())
    return {verdict: asdict(rate(count, total)) for verdict, count in counts.items()}


def _clusters(findings: Sequence[Finding], labels: Mapping[str, int], unreadable: int) -> dict[str, Any]:
    """One image, one vote: each cluster of near-duplicate suspects counts once, with its strongest verdict."""
    order: tuple[Verdict, ...] = ("replicated", "retained", "inconclusive", "not shown", "could not be scored")
    votes: dict[object, Verdict] = {}
    for finding in findings:
        cluster: object = labels.get(finding.key, finding.key)
        votes[cluster] = min(votes.get(cluster, "could not be scored"), finding.verdict, key=order.index)
    counts = {verdict: sum(vote == verdict for vote in votes.values()) for verdict in VERDICTS}
    counts["could not be scored"] += unreadable
    controls = [label for key, label in labels.items() if key.startswith("control:")]
    return {
        "n": sum(counts.values()),
        "verdicts": counts,
        "rates": _rates(counts),
        "labels": {finding.key: labels[finding.key] for finding in findings if finding.key in labels},
        "distinct_controls": len(set(controls)) if labels else None,
    }


def _finding(finding: Finding, record: Record, settings: AuditSettings, threshold: float) -> dict[str, Any]:
    """A finding with what its median leaves out: how many seeds reach the threshold, and the best of them."""
    seeds = record["caption"] or []
    highest = {name: scores(finding.key, record, settings.budgets, name, "maximum").curve for name in finding.rungs}
    values = asdict(finding)
    values["rungs"] = {
        name: one._asdict() | {"similarity_max": _at(highest[name], one.budget)} for name, one in finding.rungs.items()
    }
    return {
        **values,
        "kind": record["kind"],
        "seeds": len(seeds),
        "seeds_at_threshold": sum(value >= threshold for value in seeds),
        "caption_max": max(seeds, default=None),
    }


def _at(curve: Mapping[int, float] | None, budget: int | None) -> float | None:
    return None if curve is None or budget is None else curve.get(budget)


def _by_kind(records: Mapping[str, Record], findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = {}
    for finding in findings:
        row = table.setdefault(records[finding.key]["kind"] or "unnamed", dict.fromkeys(VERDICTS, 0))
        row[finding.verdict] += 1
    return table


def _detector(records: Mapping[str, Record], name: str) -> dict[str, Any]:
    """How well the detector tells suspects from controls, on means over seeds."""
    one, other = (detector_values(of_role(records, role), name) for role in ("suspect", "control"))
    known = bool(one and other)
    reasons = sorted(
        {r["detectors"][name]["reason"] for r in records.values() if r["detectors"].get(name, {}).get("reason")}
    )
    return {
        "suspects": len(one),
        "controls": len(other),
        "auc": auc(one, other) if known else None,
        "tpr_at_1_fpr": tpr_at_fpr(one, other, 0.01) if known else None,
        "reasons": reasons,
    }


def _trigger_images(records: Mapping[str, Record]) -> int:
    curves = [
        rows for record in records.values() for rung in (record["attack"] or {}).values() for rows in rung.values()
    ]
    return sum(len(row) for rows in curves for row in rows)
