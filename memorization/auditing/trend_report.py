"""The report of a trend: shares over training steps, a row for each checkpoint, a row for each suspect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diffkit.report import Block, Cell, Figure, Notes, Paragraph, Picture, Section, Stat, Table, write_report
from diffkit.report.html import CellLike
from diffkit.report.plots import rate_curves
from diffkit.report.tabular import Column, Value, csv_text
from diffkit.runs import Run
from diffkit.runs.journal import read_journal
from diffkit.stats import Rate, format_interval
from memorization.auditing.report_tables import TONES
from memorization.auditing.trend_result import Trend, TrendPoint, TrendSuspect

__all__ = ["trend_csv", "write_trend"]

ROWS = 200  # suspects with pictures on the page; the table beside it has all


def write_trend(run: Run, trend: Trend) -> Path:
    """Write trend.csv and report.html of a trend into its run."""
    run.write_text("trend.csv", trend_csv(trend))
    sections: list[Section | Block] = [
        Section("Over the training", _figure(trend)),
        Section("Checkpoints", (_checkpoints(trend),)),
        Section("Every suspect", _suspects(run.folder, trend)),
        Section("Limits", (Notes(_limits(trend)),)),
    ]
    last = trend["points"][-1]
    at = f"at {trend['unit']} {last['step']}"
    flagged = last["controls_flagged"]
    stats = [
        _stat(f"replicated {at}", last["replicated"]),
        _stat(f"replicated or retained {at}", last["held"]),
        Stat(f"controls flagged {at}", f"{flagged['count']} of {flagged['n']}", format_interval(flagged)),
    ]
    return write_report(run, title=f"Memorization while {trend['base']} was tuned", summary=stats, sections=sections)


def trend_csv(trend: Trend) -> str:
    """A row for each suspect: the first steps, then verdict and similarities at every step."""
    steps = [point["step"] for point in trend["points"]]
    columns = [Column("key"), Column("caption"), Column("first_replicated", "count"), Column("first_retained", "count")]
    for step in steps:
        columns += [Column(f"verdict_{step}"), Column(f"by_caption_{step}", "number")]
        columns.append(Column(f"by_attack_{step}", "number"))
    return csv_text(columns, (_csv_row(suspect) for suspect in trend["by_suspect"]))


def _csv_row(suspect: TrendSuspect) -> list[Value]:
    row: list[Value] = [suspect["key"], suspect["prompt"], suspect["first_replicated"], suspect["first_retained"]]
    for point in suspect["points"]:
        row += [point["verdict"], point["caption"], point["similarity"]]
    return row


def _stat(label: str, value: Rate) -> Stat:
    return Stat(
        label, f"{value['count']} of {value['n']}", format_interval(value), "bad" if value["count"] else "plain"
    )


def _figure(trend: Trend) -> tuple[Block, ...]:
    points = trend["points"]
    series = {
        "replicated": [point["replicated"] for point in points],
        "replicated or retained": [point["held"] for point in points],
        "controls flagged": [point["controls_flagged"] for point in points],
    }
    plot = rate_curves(series, [point["step"] for point in points], xlabel=f"training {trend['unit']}")
    caption = "Bands are 95 % intervals of each share. Suspects that are inconclusive count as not retained."
    return (Figure.of("Suspects and controls over the training", plot, caption),)


def _checkpoints(trend: Trend) -> Table:
    rows: list[list[CellLike]] = []
    for point in trend["points"]:
        unknown = sum(
            point["verdicts"].get(verdict, 0) for verdict in ("inconclusive", "not attacked", "could not be scored")
        )
        flagged = point["controls_flagged"]
        failure = point["controls_failure"]
        rows.append(
            [
                point["step"],
                Cell(point["lora"] or trend["base"], detail=f"audit in {point['folder']}"),
                *(_share(point[name]) for name in ("replicated", "held")),
                Cell(str(unknown), "warn" if unknown else "plain"),
                Cell(f"{flagged['count']} of {flagged['n']}", "warn" if failure else "plain", failure or ""),
                Cell(str(point["budget"] or "–"), detail=point["rung"]),
                f"{point['threshold']:.2f}",
            ]
        )
    headers = [trend["unit"], "checkpoint", "replicated", "replicated or retained", "inconclusive or not scored"]
    return Table([*headers, "controls flagged", "pre-set budget", "threshold"], rows)


def _share(value: Rate) -> Cell:
    return Cell(f"{value['count']} of {value['n']}", detail=format_interval(value))


def _suspects(folder: Path, trend: Trend) -> tuple[Block, ...]:
    """The suspects that are held earliest first, then by their highest similarity."""
    ordered = sorted(trend["by_suspect"], key=_order)
    pictures = _originals(folder, trend["points"][-1], ordered[:ROWS])
    rows: list[list[CellLike]] = []
    for suspect in ordered[:ROWS]:
        name = suspect["key"].removeprefix("suspect:")
        lost = f"not shown at {', '.join(map(str, suspect['lost']))}" if suspect["lost"] else ""
        rows.append(
            [
                Cell(name, detail=suspect["prompt"]),
                pictures.get(suspect["key"]),
                suspect["first_replicated"],
                None if suspect["first_retained"] is None else Cell(str(suspect["first_retained"]), detail=lost),
                *(
                    Cell(
                        point["verdict"],
                        TONES[point["verdict"]],
                        f"caption {_number(point['caption'])}, attack {_number(point['similarity'])}",
                    )
                    for point in suspect["points"]
                ),
            ]
        )
    headers = ["suspect", "original", "first replicated", "first replicated or retained"]
    headers += [f"{trend['unit']} {point['step']}" for point in trend["points"]]
    note = "Similarities are medians over seeds, under the attack at each checkpoint's pre-set budget."
    table = Table(headers, rows, note)
    left = len(ordered) - len(rows)
    more = (Paragraph(f"{left} more suspects are in trend.csv, all of them later or less similar."),) if left else ()
    return (table, *more)


def _order(suspect: TrendSuspect) -> tuple[float, float]:
    values = [value for point in suspect["points"] for value in (point["caption"], point["similarity"])]
    first = suspect["first_retained"]
    return (float("inf") if first is None else first, -max((v for v in values if v is not None), default=-1.0))


def _originals(folder: Path, last: TrendPoint, suspects: Sequence[TrendSuspect]) -> dict[str, Picture]:
    """The original of each suspect, from the last checkpoint's audit."""
    audit = folder / last["folder"]
    records = read_journal(audit / "journal.jsonl").items
    named = {suspect["key"]: records[suspect["key"]]["pictures"].get("original") for suspect in suspects}
    return {key: Picture.of(audit / name, f"{key}: original") for key, name in named.items() if name is not None}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _limits(trend: Trend) -> list[str]:
    source = {
        "given": "as given",
        "metadata": "read from the files' metadata",
        "names": "read from the files' names",
        "order": "not stated by any file: the checkpoints are numbered in the order given",
    }[trend["steps_from"]]
    reference = trend["reference_model"]
    return [
        f"The training {trend['unit']}s are {source}.",
        "An image that is first retained at one checkpoint may have been so since the checkpoint before: only the "
        "checkpoints that were given are looked at.",
        "Every checkpoint is audited with the same suspects, controls, seeds and settings, and judged at the budget "
        "that its own controls allow; verdicts are corrected over suspects, not over checkpoints.",
        f"Reference model, at every checkpoint: {reference}." if reference else "There was no reference model.",
        f"Settings: {json.dumps(trend['settings'], ensure_ascii=False)}",
    ]
