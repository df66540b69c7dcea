"""All figures of an audit from its journal: verdicts, rates, comparison with the controls. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from diffkit.stats import Rate, auc, rate, tpr_at_fpr
from diffkit.suspects import RowError
from memorization.auditing.aggregate import (
    AGGREGATES,
    Records,
    aggregation,
    by_rung,
    conclude,
    detector_values,
    edited,
    flagged_controls,
    of_role,
    on_reference,
    scores,
)
from memorization.auditing.controls import up_to
from memorization.auditing.result import (
    AuditFigures,
    AuditRecord,
    AuditSummary,
    ClusterSummary,
    CostSummary,
    DetectorSummary,
    RungResult,
    SuspectResult,
    UnreadableRow,
)
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verdicts import VERDICTS, Finding, RungFinding, Verdict
from memorization.copies import OperatingPoint

#: Versions of what an audit writes; a reader refuses others.
SUMMARY_SCHEMA = 3
RECORD_SCHEMA = 2  # of the items in the journal; part of the configuration, so that an older folder is refused


def summarise_audit(
    records: Records,
    settings: AuditSettings,
    *,
    operating_point: OperatingPoint,
    labels: Mapping[str, int] | None = None,
    repeated_controls: Mapping[str, str] | None = None,
    suspect_errors: Sequence[RowError] = (),
    control_errors: Sequence[RowError] = (),
) -> AuditFigures:
    """All figures of an audit as JSON values; no dates and no durations, so that the same audit gives the same file.

    Args:
        records: journal records by key, in the order of the items.
        settings: the audit's settings.
        operating_point: the copy detector's calibration, with its ``threshold``.
        labels: cluster of near-duplicates by key of suspects and controls; None = no near-duplicates.
        repeated_controls: key -> key, of controls that have no record since they show the picture of another.
        suspect_errors: suspects that could not be read; counted as "could not be scored".
        control_errors: controls that could not be read; reported.
    """
    threshold = operating_point["threshold"]
    outcome = conclude(records, settings, threshold=threshold)
    rungs = {name: by_rung(name, records, settings, outcome, threshold) for name in outcome.checks}
    counts = {verdict: sum(f.verdict == verdict for f in outcome.findings) for verdict in VERDICTS}
    counts["could not be scored"] += len(suspect_errors)
    deciding = rungs[outcome.strongest]
    flagged, flagged_keys = flagged_controls(records, settings, outcome, threshold)
    return {
        "suspects": len(outcome.findings) + len(suspect_errors),
        "verdicts": counts,
        "rates": _rates(counts),
        "clusters": _clusters(outcome.findings, labels or {}, repeated_controls or {}, len(suspect_errors)),
        "by_kind": _by_kind(records, outcome.findings),
        "rung": outcome.strongest,
        "budget": deciding["budget"],
        "controls": {**deciding["controls"], "flagged": flagged, "flagged_keys": flagged_keys},
        "attack": deciding["attack"],
        "rungs": rungs,
        "aggregation": {how: aggregation(records, settings, outcome, threshold, how) for how in AGGREGATES},
        "edits": {name: edited(name, records, settings, outcome, threshold) for name in settings.edits},
        "reference": on_reference(records, settings, outcome, threshold),
        "detectors": {name: _detector(records, name) for name in settings.detectors},
        "operating_point": operating_point,
        "findings": [_finding(f, records[f.key], settings, threshold) for f in outcome.findings],
        "unreadable": [_unreadable("suspects", error) for error in suspect_errors]
        + [_unreadable("controls", error) for error in control_errors],
        "cost": _cost(records, settings),
        "settings": settings.to_json(),
    }


def items_in_error(summary: AuditSummary) -> int:
    """Suspects and controls for which something could not be scored or read."""
    unreadable_controls = sum(row["of"] == "controls" for row in summary["unreadable"])
    return summary["verdicts"]["could not be scored"] + summary["controls"]["unscored"] + unreadable_controls


def _rates(counts: Mapping[Verdict, int]) -> dict[Verdict, Rate]:
    total = sum(counts.values())
    return {verdict: rate(count, total) for verdict, count in counts.items()}


def _unreadable(group: Literal["suspects", "controls"], error: RowError) -> UnreadableRow:
    return {"of": group, "source": error.source, "row": error.row, "reason": error.reason}


def _clusters(
    findings: Sequence[Finding], labels: Mapping[str, int], repeated_controls: Mapping[str, str], unreadable: int
) -> ClusterSummary:
    """Count each cluster of near-duplicate suspects once, with its strongest verdict."""
    order: tuple[Verdict, ...] = (
        "replicated",
        "retained",
        "inconclusive",
        "not shown",
        "not attacked",
        "could not be scored",
    )
    votes: dict[object, Verdict] = {}
    for finding in findings:
        cluster: object = labels.get(finding.key, finding.key)
        votes[cluster] = min(votes.get(cluster, "could not be scored"), finding.verdict, key=order.index)
    counts = {verdict: sum(vote == verdict for vote in votes.values()) for verdict in VERDICTS}
    counts["could not be scored"] += unreadable
    controls = [label for key, label in labels.items() if key.startswith("control:")]
    clusters: ClusterSummary = {
        "n": sum(counts.values()),
        "verdicts": counts,
        "rates": _rates(counts),
        "labels": {finding.key: labels[finding.key] for finding in findings if finding.key in labels},
        "distinct_controls": len(set(controls)) if labels else None,
    }
    if repeated_controls:
        clusters["repeated_controls"] = dict(repeated_controls)
    return clusters


def _finding(finding: Finding, record: AuditRecord, settings: AuditSettings, threshold: float) -> SuspectResult:
    """A finding with what its median leaves out: how many seeds reach the threshold, and the best of them."""
    seeds = record["caption"] or []
    highest = {
        name: up_to([scores(finding.key, record, settings.budgets, name, "maximum")], result.budget).get(finding.key)
        for name, result in finding.rungs.items()
    }
    return {
        "key": finding.key,
        "verdict": finding.verdict,
        "reason": finding.reason,
        "rung": finding.rung,
        "budget": finding.budget,
        "caption": finding.caption,
        "similarity": finding.similarity,
        "p": finding.p.rank if finding.p else None,
        "q": finding.q,
        "tail_p": finding.p.tail if finding.p else None,
        "bulk_p": finding.p.bulk if finding.p else None,
        "evidence": finding.p.source if finding.p else None,
        "caption_tail_p": finding.caption_p.tail if finding.caption_p else None,
        "caption_q": finding.caption_q,
        "reference_caption": finding.reference_caption,
        "rungs": {name: _rung_result(result, highest[name]) for name, result in finding.rungs.items()},
        "kind": record["kind"],
        "seeds": len(seeds),
        "seeds_at_threshold": sum(value >= threshold for value in seeds),
        "caption_max": max(seeds, default=None),
    }


def _rung_result(result: RungFinding, highest: float | None) -> RungResult:
    return {
        "verdict": result.verdict,
        "reason": result.reason,
        "budget": result.budget,
        "similarity": result.similarity,
        "p": result.p.rank if result.p else None,
        "q": result.q,
        "tail_p": result.p.tail if result.p else None,
        "bulk_p": result.p.bulk if result.p else None,
        "evidence": result.p.source if result.p else None,
        "reference": result.reference,
        "similarity_max": highest,
    }


def _by_kind(records: Records, findings: Sequence[Finding]) -> dict[str, dict[Verdict, int]]:
    table: dict[str, dict[Verdict, int]] = {}
    for finding in findings:
        row = table.setdefault(records[finding.key]["kind"] or "unnamed", dict.fromkeys(VERDICTS, 0))
        row[finding.verdict] += 1
    return table


def _detector(records: Records, name: str) -> DetectorSummary:
    """How well the detector separates suspects from controls, on means over seeds."""
    positives, negatives = (detector_values(of_role(records, role), name) for role in ("suspect", "control"))
    scored = bool(positives and negatives)
    reasons = (record["detectors"][name]["reason"] for record in records.values() if name in record["detectors"])
    return {
        "suspects": len(positives),
        "controls": len(negatives),
        "auc": auc(positives, negatives) if scored else None,
        "tpr_at_1_fpr": tpr_at_fpr(positives, negatives, 0.01) if scored else None,
        "reasons": sorted({reason for reason in reasons if reason}),
    }


def _cost(records: Records, settings: AuditSettings) -> CostSummary:
    curves = [
        rows for record in records.values() for rung in (record["attack"] or {}).values() for rows in rung.values()
    ]
    reasons = Counter(reason for record in records.values() for reason in record.get("stopped", {}).values())
    return {
        "stopped": dict(sorted(reasons.items())),
        "sample_gradients": sum(record["sample_gradients"] for record in records.values()),
        "caption_images": len(records) * settings.generations,
        "trigger_images": sum(len(row) for rows in curves for row in rows),
    }
