"""What a comparison of audits writes: summary.json, a JSON schema of which is in ``docs/schemas``."""

from __future__ import annotations

from typing import NotRequired  # pydantic reads typing's own only from Python 3.12

from typing_extensions import TypedDict

from diffkit.stats import Rate
from memorization.auditing.result import BudgetRow, DetectorSummary, MitigationUsed
from memorization.auditing.verdicts import Verdict
from memorization.quality.result import QualityReport


class McNemar(TypedDict):
    """Exact McNemar test of a paired change: counts before and after, of those that changed, and p."""

    n: int
    before: int
    after: int
    only_before: int
    only_after: int
    p: float | None


class PairedChange(McNemar):
    """The suspects reproduced before and after, in one way; ``left_out`` are unknown in either audit."""

    left_out: int
    budget: NotRequired[int]


class ComparedClusters(TypedDict):
    """Verdicts with each cluster of near-duplicates counted once."""

    n: int
    verdicts: dict[Verdict, int]
    rates: dict[Verdict, Rate]


class ComparedRun(TypedDict):
    """One of the compared audits; most of it from its own summary."""

    model: str
    mitigation: MitigationUsed | None
    verdicts: dict[Verdict, int]
    rates: dict[Verdict, Rate]
    rung: str
    budget: int | None
    detectors: dict[str, DetectorSummary]
    attack: list[BudgetRow]
    threshold: float
    caption: Rate
    clusters: ComparedClusters
    controls_flagged: Rate
    controls_failure: str | None
    weakest_rungs: dict[str, int]


class GalleryRow(TypedDict):
    """One suspect: its verdict in every audit."""

    key: str
    verdicts: dict[str, Verdict]


class Comparison(TypedDict):
    """The content of summary.json. ``changes``: audit -> caption, verdict or attack -> change from the baseline."""

    schema_version: int
    baseline: str
    suspects: int
    runs: dict[str, ComparedRun]
    changes: dict[str, dict[str, PairedChange]]
    quality: dict[str, QualityReport] | None
    gallery: list[GalleryRow]
