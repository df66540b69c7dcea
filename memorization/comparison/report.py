"""The report of a comparison: what each model gives away, what changed, what it cost, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffkit.report import Block, Cell, Figure, Notes, Paragraph, Picture, Section, Stat, Table, Tone, write_report
from diffkit.report.html import CellLike
from diffkit.report.plots import lines
from diffkit.runs import Run
from memorization.auditing.report import TONES
from memorization.auditing.verdicts import VERDICTS
from memorization.comparison.paired import AuditRun

QUALITY = {
    "drift, relative": ("drift", "relative"),
    "drift, pixels": ("drift", "pixel"),
    "likeness within a prompt, change": ("diversity", "change"),
    "loss, change": ("loss", "all", "change"),
    "unconditional branch": ("unconditional", "all"),
}


def write_comparison(run: Run, runs: Sequence[AuditRun], comparison: Mapping[str, Any]) -> Path:
    """Write report.html of a comparison into its own run."""
    sections: list[Section | Block] = [
        Section("Verdicts", (_verdicts(comparison),)),
        Section("What changed, suspect by suspect", _changes(comparison)),
        Section("With more attack", _curves(comparison)),
        Section("Detectors", (_detectors(comparison),)),
        Section("What it cost", _quality(comparison)),
        Section("Every suspect", (_gallery(runs, comparison),)),
        Section("Limits", (Notes(LIMITS),)),
    ]
    stats = [
        Stat(name, f"{sum(one['verdicts'][v] for v in ('replicated', 'retained'))} of {comparison['suspects']}", "back")
        for name, one in comparison["runs"].items()
    ]
    return write_report(run, title="Memorization before and after", summary=stats, sections=sections)


LIMITS = (
    "All audits asked the same question: same suspects, controls, seeds and settings; others are refused.",
    "Each audit takes its pre-set budget from its own controls; attacks are compared at the smaller of the two.",
    "p is McNemar's exact test on the suspects that changed; it is not corrected for the number of rows.",
    "A suspect that no longer comes back at this budget may come back with more: read the curves with the verdicts.",
)


def _verdicts(comparison: Mapping[str, Any]) -> Table:
    rows: list[list[CellLike]] = []
    for name, one in comparison["runs"].items():
        shares: list[CellLike] = [
            Cell(str(one["verdicts"][verdict]), detail=_interval(one["rates"][verdict])) for verdict in VERDICTS
        ]
        flagged = one["controls_flagged"]
        tone: Tone = "warn" if one["controls_failure"] or flagged["count"] else "plain"
        controls = Cell(f"{flagged['count']} of {flagged['n']}", tone, one["controls_failure"] or "")
        rungs = ", ".join(f"{rung} {count}" for rung, count in one["weakest_rungs"].items())
        method = one["mitigation"]["method"] if one["mitigation"] else ""
        rows.append([Cell(name, detail=method or one["model"]), *shares, one["budget"], controls, rungs or None])
    return Table(["model", *VERDICTS, "pre-set budget", "controls flagged", "weakest rung that works"], rows)


def _changes(comparison: Mapping[str, Any]) -> tuple[Block, ...]:
    rows: list[list[CellLike]] = []
    for name, changes in comparison["changes"].items():
        for what, one in changes.items():
            label = f"{what}, budget {one['budget']}" if "budget" in one else what
            p = None if one["p"] is None else f"{one['p']:.3g}"
            counts = [f"{one[side]} of {one['n']}" for side in ("before", "after")]
            rows.append([name, label, *counts, one["only_before"], one["only_after"], p, one["left_out"]])
    headers = ["model", "brought back by", "before", "after", "only before", "only after", "p", "left out"]
    said = (
        f"Before is {comparison['baseline']}. The same suspects in both; those that are unknown or inconclusive in "
        "either are left out."
    )
    return (Paragraph(said), Table(headers, rows))


def _curves(comparison: Mapping[str, Any]) -> tuple[Block, ...]:
    figures: list[Block] = []
    for group, key in (("Suspects", "suspects"), ("Controls", "controls")):
        series = {
            name: (
                list(range(len(one["attack"]))),
                [(row[key] or {}).get("share") for row in one["attack"]],
            )
            for name, one in comparison["runs"].items()
        }
        budgets = [row["budget"] for row in next(iter(comparison["runs"].values()))["attack"]]
        plot = lines(series, xlabel="attack budget (steps)", ylabel="share brought back")
        plot.axes[0].set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
        plot.axes[0].set_ylim(-0.03, 1.03)
        figures.append(Figure.of(f"{group} brought back", plot))
    return tuple(figures)


def _detectors(comparison: Mapping[str, Any]) -> Block:
    rows: list[list[CellLike]] = [
        [name, detector, _figure(one["auc"]), one["suspects"], one["controls"]]
        for name, run in comparison["runs"].items()
        for detector, one in run["detectors"].items()
    ]
    if not rows:
        return Paragraph("No detector was asked.")
    return Table(["model", "detector", "AUC", "suspects", "controls"], rows, "Captions of suspects against controls.")


def _quality(comparison: Mapping[str, Any]) -> tuple[Block, ...]:
    if not comparison["quality"]:
        return (Paragraph("Not measured; add --quality with a file of prompts (lab:held-out on the lab)."),)
    rows: list[list[CellLike]] = []
    for name, report in comparison["quality"].items():
        found = {label: _deep(report, path) for label, path in QUALITY.items()}
        found |= {f"{reward}, change": one["change"] for reward, one in report["alignment"].items()}
        for label, one in found.items():
            if isinstance(one, Mapping) and one.get("mean") is not None:
                rows.append([name, label, Cell(f"{one['mean']:.3f}", detail=_span(one)), one["n"]])
    said = "Same prompts and seeds as the first model; relative drift 0 is the same picture, 1 another seed's."
    return (Table(["model", "figure", "mean (95 % interval)", "n"], rows, said),)


def _deep(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _span(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['low']:.3f} to {estimate['high']:.3f}"


def _gallery(runs: Sequence[AuditRun], comparison: Mapping[str, Any]) -> Table:
    """A row a suspect: the original, then of each run the verdict and the most similar pictures."""
    rows: list[list[CellLike]] = []
    for entry in comparison["gallery"]:
        key = entry["key"]
        first = runs[0].items[key]
        cells: list[CellLike] = [Cell(first["id"], detail=first["prompt"]), _pictures(runs[0], key, ("original",))]
        for run in runs:
            verdict = entry["verdicts"][run.name]
            budget = run.summary["budget"] or max(run.summary["settings"]["budgets"])
            cells += [
                Cell(verdict, TONES[verdict]),
                _pictures(run, key, ("caption", f"{run.summary['rung']}-{budget}")),
            ]
        rows.append(cells)
    headers = [part for run in runs for part in (run.name, "by caption, by attack")]
    return Table(["suspect", "original", *headers], rows, "The most similar picture of each way.")


def _pictures(run: AuditRun, key: str, names: Sequence[str]) -> list[Picture]:
    record = run.items[key]
    caption = f"caption {max(record['caption']):.2f}" if record["caption"] else "caption"
    found = []
    for name in names:
        path = record["pictures"].get(name)
        if path is not None and (run.folder / path).is_file():
            rung, _, budget = name.rpartition("-")
            best = record["best"].get(rung, {}).get(budget)
            label = f"attack {best['similarity']:.2f}" if best else caption if name == "caption" else name
            found.append(Picture.of(run.folder / path, f"{record['id']}, {run.name}: {name}", label))
    return found


def _interval(rate: Mapping[str, Any]) -> str:
    if rate["share"] is None:
        return "nothing to count"
    low, high = rate["interval"]
    return f"{low:.0%} to {high:.0%}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
