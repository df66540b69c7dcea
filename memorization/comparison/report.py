"""The report of a comparison: verdicts, paired changes, quality, and every suspect's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diffkit.report import Block, Cell, Figure, Notes, Paragraph, Picture, Section, Stat, Table, Tone, write_report
from diffkit.report.html import CellLike
from diffkit.report.plots import lines
from diffkit.runs import Run
from diffkit.stats import Rate, format_interval
from memorization.auditing.aggregate import last_look
from memorization.auditing.report_tables import TONES
from memorization.auditing.result import BudgetRow
from memorization.auditing.verdicts import VERDICTS
from memorization.comparison.paired import AuditRun
from memorization.comparison.result import Comparison, GalleryRow
from memorization.quality.result import Estimate, QualityReport

GALLERY = 200  # rows with pictures on the page


def _estimates(report: QualityReport) -> dict[str, Estimate]:
    """The estimates of a quality report that the table shows, by their labels."""
    return {
        "drift, relative": report["drift"]["relative"],
        "drift, pixels": report["drift"]["pixel"],
        "similarity within a prompt, change": report["diversity"]["change"],
        "loss, change": report["loss"]["all"]["change"],
        "unconditional branch": report["unconditional"]["all"],
        **{f"{reward}, change": alignment["change"] for reward, alignment in report["alignment"].items()},
    }


def write_comparison(run: Run, runs: Sequence[AuditRun], comparison: Comparison) -> Path:
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
    total = comparison["suspects"]
    stats = [
        Stat(name, f"{compared['verdicts']['replicated'] + compared['verdicts']['retained']} of {total}", "back")
        for name, compared in comparison["runs"].items()
    ]
    return write_report(run, title="Memorization before and after", summary=stats, sections=sections)


LIMITS = (
    "All audits asked the same question: same suspects, controls, seeds and settings; others are refused.",
    "Each audit takes its pre-set budget from its own controls; attacks are compared at the smaller of the two.",
    "p is McNemar's exact test on the suspects that changed; it is not corrected for the number of rows.",
    "A suspect that no longer comes back at this budget may come back with more: read the curves with the verdicts.",
)


def _verdicts(comparison: Comparison) -> Table:
    rows: list[list[CellLike]] = []
    for name, compared in comparison["runs"].items():
        shares: list[CellLike] = [
            Cell(str(compared["verdicts"][verdict]), detail=format_interval(compared["rates"][verdict]))
            for verdict in VERDICTS
        ]
        flagged = compared["controls_flagged"]
        tone: Tone = "warn" if compared["controls_failure"] or flagged["count"] else "plain"
        controls = Cell(f"{flagged['count']} of {flagged['n']}", tone, compared["controls_failure"] or "")
        rungs = ", ".join(f"{rung} {count}" for rung, count in compared["weakest_rungs"].items())
        method = compared["mitigation"]["method"] if compared["mitigation"] else ""
        rows.append(
            [Cell(name, detail=method or compared["model"]), *shares, compared["budget"], controls, rungs or None]
        )
    return Table(["model", *VERDICTS, "pre-set budget", "controls flagged", "weakest rung that works"], rows)


def _changes(comparison: Comparison) -> tuple[Block, ...]:
    rows: list[list[CellLike]] = []
    for name, changes in comparison["changes"].items():
        for way, change in changes.items():
            label = f"{way}, budget {change['budget']}" if "budget" in change else way
            p = None if change["p"] is None else f"{change['p']:.3g}"
            counts = [f"{change['before']} of {change['n']}", f"{change['after']} of {change['n']}"]
            rows.append([name, label, *counts, change["only_before"], change["only_after"], p, change["left_out"]])
    headers = ["model", "brought back by", "before", "after", "only before", "only after", "p", "left out"]
    note = (
        f"Before is {comparison['baseline']}. The same suspects in both; those that are unknown or inconclusive in "
        "either are left out."
    )
    return (Paragraph(note), Table(headers, rows))


def _curves(comparison: Comparison) -> tuple[Block, ...]:
    figures: list[Block] = []
    rates: dict[str, Callable[[BudgetRow], Rate | None]] = {
        "Suspects": lambda row: row["suspects"],
        "Controls": lambda row: row["controls"],
    }
    for group, rate_of in rates.items():
        series = {
            name: (list(range(len(run["attack"]))), [_share(rate_of(row)) for row in run["attack"]])
            for name, run in comparison["runs"].items()
        }
        budgets = [row["budget"] for row in next(iter(comparison["runs"].values()))["attack"]]
        plot = lines(series, xlabel="attack budget (steps)", ylabel="share brought back")
        plot.axes[0].set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
        plot.axes[0].set_ylim(-0.03, 1.03)
        figures.append(Figure.of(f"{group} brought back", plot))
    return tuple(figures)


def _share(rate: Rate | None) -> float | None:
    return None if rate is None else rate["share"]


def _detectors(comparison: Comparison) -> Block:
    rows: list[list[CellLike]] = [
        [name, detector, _figure(scores["auc"]), scores["suspects"], scores["controls"]]
        for name, run in comparison["runs"].items()
        for detector, scores in run["detectors"].items()
    ]
    if not rows:
        return Paragraph("No detector was asked.")
    return Table(["model", "detector", "AUC", "suspects", "controls"], rows, "Captions of suspects against controls.")


def _quality(comparison: Comparison) -> tuple[Block, ...]:
    if not comparison["quality"]:
        return (Paragraph("Not measured; add --quality with a file of prompts (lab:held-out on the lab)."),)
    rows: list[list[CellLike]] = []
    for name, report in comparison["quality"].items():
        for label, estimate in _estimates(report).items():
            if estimate["mean"] is not None:
                interval = f"{estimate['low']:.3f} to {estimate['high']:.3f}"
                rows.append([name, label, Cell(f"{estimate['mean']:.3f}", detail=interval), estimate["n"]])
    note = "Same prompts and seeds as the first model; relative drift 0 is the same picture, 1 another seed's."
    return (Table(["model", "figure", "mean (95 % interval)", "n"], rows, note),)


def gallery_rows(gallery: Sequence[GalleryRow], most: int = GALLERY) -> list[GalleryRow]:
    """The suspects that the page shows, in their order: those whose verdicts differ, then those that came back.

    Args:
        gallery: all suspects of a comparison.
        most: how many are shown.
    """

    def rank(place: int) -> int:
        verdicts = set(gallery[place]["verdicts"].values())
        return 0 if len(verdicts) > 1 else 1 if verdicts & {"replicated", "retained"} else 2

    chosen = sorted(range(len(gallery)), key=rank)[:most]
    return [gallery[place] for place in sorted(chosen)]


def _gallery(runs: Sequence[AuditRun], comparison: Comparison) -> Table:
    """A row a suspect: the original, then of each run the verdict and the most similar pictures."""
    rows: list[list[CellLike]] = []
    shown = gallery_rows(comparison["gallery"])
    for entry in shown:
        key = entry["key"]
        first = runs[0].items[key]
        cells: list[CellLike] = [Cell(first["id"], detail=first["prompt"]), _pictures(runs[0], key, ("original",))]
        for run in runs:
            verdict = entry["verdicts"][run.name]
            rung = run.summary["rung"]
            look = last_look(run.items[key], rung, run.summary["budget"])
            cells += [Cell(verdict, TONES[verdict]), _pictures(run, key, ("caption", f"{rung}-{look}"))]
        rows.append(cells)
    headers = [part for run in runs for part in (run.name, "by caption, by attack")]
    note = "The most similar picture of each way."
    if left := len(comparison["gallery"]) - len(shown):
        note += (
            f" Of {len(comparison['gallery'])} suspects, {len(shown)} are shown: first those whose verdicts differ, "
            f"then those that came back. The other {left} are in summary.json (gallery) and in the audits' own reports."
        )
    return Table(["suspect", "original", *headers], rows, note)


def _pictures(run: AuditRun, key: str, names: Sequence[str]) -> list[Picture]:
    record = run.items[key]
    caption = f"caption {max(record['caption']):.2f}" if record["caption"] else "caption"
    pictures = []
    for name in names:
        path = record["pictures"].get(name)
        if path is not None and (run.folder / path).is_file():
            rung, _, budget = name.rpartition("-")
            best = record["best"].get(rung, {}).get(budget)
            label = f"attack {best['similarity']:.2f}" if best else caption if name == "caption" else name
            pictures.append(Picture.of(run.folder / path, f"{record['id']}, {run.name}: {name}", label))
    return pictures


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
