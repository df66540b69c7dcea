"""The report's tables of suspects and controls, with their pictures inside the page or linked to their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diffkit.report import Cell, LinkedPicture, Picture, Table, Tone
from diffkit.report.html import AnyPicture, CellLike
from memorization.auditing.aggregate import Records, last_look, scores
from memorization.auditing.result import AuditRecord, AuditSummary, SuspectResult

TONES: dict[str, Tone] = {
    "replicated": "bad",
    "retained": "bad",
    "not shown": "plain",
    "not attacked": "muted",
    "inconclusive": "warn",
    "could not be scored": "muted",
}

#: From a picture's path in the run's folder, what it shows, and a label, the picture on the page.
Show = Callable[[str, str, str], AnyPicture]


def embedded(folder: Path) -> Show:
    """Pictures inside the page, so that it can be mailed."""
    return lambda path, caption, label: Picture.of(folder / path, caption, label)


def linked(prefix: str) -> Show:
    """Pictures that the page loads from the run's folder; `prefix` leads there from the page."""
    return lambda path, caption, label: LinkedPicture(prefix + path, caption, label)


def suspect_table(
    findings: Sequence[SuspectResult], records: Records, summary: AuditSummary, show: Show, anchors: Sequence[str] = ()
) -> Table:
    """A row for each of some findings: verdict, caption, pictures, similarities, the detectors' scores."""
    names = summary["settings"]["detectors"]
    rows: list[list[CellLike]] = []
    for finding in findings:
        record = records[finding["key"]]
        seeds = f"{finding['seeds_at_threshold']} of {finding['seeds']} seeds" if finding["seeds"] else ""
        p = (
            None
            if finding["p"] is None
            else Cell(f"{finding['p']:.3f}", detail=f"corrected {finding['q']:.2g} {finding['evidence']}")
        )
        highest = max((rung["similarity_max"] or -1 for rung in finding["rungs"].values()), default=-1)
        budget = f"up to {finding['budget']} steps, highest {highest:.2f}" if finding["budget"] else ""
        rows.append(
            [
                Cell(finding["verdict"], TONES[finding["verdict"]], finding["reason"]),
                Cell(record["id"], detail=record["prompt"]),
                _pictures(record, summary, show),
                Cell(two_decimals(finding["caption"]), detail=seeds),
                Cell(two_decimals(finding["similarity"]), detail=budget),
                finding["rung"],
                p,
                *(two_decimals(record["detectors"][name]["value"]) for name in names),
            ]
        )
    headers = ["verdict", "suspect", "original, by caption, by attack", "by caption", "by attack", "weakest rung", "p"]
    shown = "Similarities are medians over seeds; the pictures are the most similar ones."
    if any("mask" in record["pictures"] for record in records.values()):
        shown += " A mask is bright where the caption fixes the pixels of a template (curvature difference)."
    return Table([*headers, *(name.replace("_", " ") for name in names)], rows, shown, anchors)


def control_table(
    keys: Sequence[str], records: Records, summary: AuditSummary, show: Show, anchors: Sequence[str] = ()
) -> Table:
    """A row for each of some controls: caption, pictures, similarity at every budget."""
    settings, controls = summary["settings"], summary["controls"]
    rows: list[list[CellLike]] = []
    flagged = set(controls["flagged_keys"])
    for key in keys:
        record = records[key]
        measured = scores(key, record, settings["budgets"], summary["rung"])
        curve = measured.curve or {}
        tone: Tone = "bad" if key in flagged else "plain"
        rows.append(
            [
                Cell(record["id"], tone, record["prompt"]),
                _pictures(record, summary, show),
                two_decimals(measured.caption),
                *(two_decimals(curve.get(budget)) for budget in settings["budgets"]),
            ]
        )
    budgets = [f"attack {budget}" for budget in settings["budgets"]]
    return Table(["control", "original, by caption, by attack", "by caption", *budgets], rows, "", anchors)


def _pictures(record: AuditRecord, summary: AuditSummary, show: Show) -> list[AnyPicture]:
    rung = summary["rung"]
    look = last_look(record, rung, summary["budget"])
    best = None if look is None else record["best"][rung][look]
    labels = {
        "original": "original",
        "caption": f"caption {two_decimals(max(record['caption'], default=None) if record['caption'] else None)}",
        f"{rung}-{look}": f"attack {two_decimals(best['similarity'] if best else None)}",
        "mask": "mask",
    }
    return [
        show(record["pictures"][name], f"{record['id']}: {name}", label)
        for name, label in labels.items()
        if name in record["pictures"]
    ]


def two_decimals(value: float | None) -> str:
    """A similarity with two decimals."""
    return "–" if value is None else f"{value:.2f}"
