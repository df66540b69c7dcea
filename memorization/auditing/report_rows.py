"""Which rows of a large audit report.html shows, and in which order its pages hold all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from memorization.auditing.aggregate import Records, of_role, scores
from memorization.auditing.result import AuditSummary, SuspectResult
from memorization.auditing.verdicts import Verdict

PAGE_ROWS = 200  # rows of one page; with no more suspects and controls, report.html holds them all
LINES = 200  # of what could not be scored, on report.html
#: How many suspects of each verdict report.html shows of a large audit, in the order of the pages.
SHOWN: Mapping[Verdict, int] = {
    "replicated": 60, "retained": 60, "inconclusive": 40, "could not be scored": 10, "not shown": 20,
    "not attacked": 20,
}  # fmt: skip
SHOWN_CONTROLS = 20


class Rows(NamedTuple):
    """All rows of an audit, and what report.html shows of them.

    Attributes:
        findings: suspects; of a large audit by verdict in the order of :data:`SHOWN`, then the most similar first.
        controls: keys; of a large audit the flagged ones first, then the most similar.
        lines: what could not be scored.
        shown_findings: those on report.html; ``shown_controls`` and ``shown_lines`` likewise.
    """

    findings: Sequence[SuspectResult]
    controls: Sequence[str]
    lines: Sequence[str]
    shown_findings: Sequence[SuspectResult]
    shown_controls: Sequence[str]
    shown_lines: Sequence[str]

    @property
    def complete(self) -> bool:
        """Whether report.html shows all suspects and controls."""
        return len(self.shown_findings) == len(self.findings) and len(self.shown_controls) == len(self.controls)


def choose_rows(records: Records, summary: AuditSummary, lines: Sequence[str]) -> Rows:
    """All rows of an audit of up to 200 in the order of the items; of a larger one those that matter.

    Args:
        records: journal records by key.
        summary: the content of summary.json.
        lines: what could not be scored.
    """
    findings, controls = summary["findings"], list(of_role(records, "control"))
    if len(findings) + len(controls) <= PAGE_ROWS:
        return Rows(findings, controls, lines, findings, controls, lines[:LINES])
    findings, controls = _ordered_findings(findings), _ordered_controls(records, summary)
    of_verdict = {verdict: [row for row in findings if row["verdict"] == verdict] for verdict in SHOWN}
    shown = [row for verdict, most in SHOWN.items() for row in of_verdict[verdict][:most]]
    return Rows(findings, controls, lines, shown, controls[:SHOWN_CONTROLS], lines[:LINES])


def _ordered_findings(findings: Sequence[SuspectResult]) -> list[SuspectResult]:
    order = list(SHOWN)
    return sorted(findings, key=lambda row: (order.index(row["verdict"]), -_highest(row["caption"], row["similarity"])))


def _ordered_controls(records: Records, summary: AuditSummary) -> list[str]:
    budgets, rung, budget = summary["settings"]["budgets"], summary["rung"], summary["budget"]
    flagged = set(summary["controls"]["flagged_keys"])

    def nearness(key: str) -> tuple[bool, float]:
        measured = scores(key, records[key], budgets, rung)
        return key not in flagged, -_highest(measured.caption, (measured.curve or {}).get(budget or max(budgets)))

    return sorted(of_role(records, "control"), key=nearness)


def _highest(*similarities: float | None) -> float:
    return max((value for value in similarities if value is not None), default=-1.0)
