"""The report of a locality study: every figure with its nulls, and the limits of its conclusions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.report import Block, Cell, Figure, Notes, Paragraph, Section, Stat, Table, Tone, write_report
from diffkit.report.html import CellLike
from diffkit.report.plots import lines
from diffkit.runs import Run
from memorization.locality.null_comparison import NULLS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

TONES: dict[str, Tone] = {"more alike": "warn", "less alike": "plain", "not told apart": "plain", "unknown": "muted"}
LINES = {
    "trigger": "to another trigger of the same image",
    "caption": "to the image's caption",
    "start": "to another start (null: half a trigger alone)",
    "others": "to a trigger of another image (null)",
    "carried": "the displacement carried to another start",
    "mean": "the mean displacement at a fresh start",
}
READING = (
    "Nulls: others = triggers of different memorized images, each from its own start; control = the same starts, "
    "attacked towards images the model has never seen; starts = the same starts before any attack; captions = of "
    "different memorized images; ordinary = captions of nothing memorized; chance = random sets of the same sizes."
)


def write_page(run: Run, summary: Mapping[str, Any]) -> Path:
    """Write report.html of a finished study.

    Args:
        run: the open run.
        summary: the content of summary.json.
    """
    figures = {name: Figure.of(name.replace("-", " "), plot) for name, plot in plots(summary).items()}
    sections: list[Section | Block] = [
        Section("What agrees more than its nulls", (_reading_table(summary), Paragraph(READING))),
        Section("Starts", (_image_table(summary),)),
        Section("Between triggers", (_line_table(summary), *_some(figures, "lines"))),
        Section("Embeddings", (_embedding_table(summary), _displacement_table(summary))),
        Section("Activations", (_layer_table(summary["activations"]), *_some(figures, "activations"))),
    ]
    for method, table in summary["weights"].items():
        sections.append(Section(f"Weights: {method}", (_layer_table(table), *_some(figures, f"weights-{method}"))))
    sections.append(Section("Assumptions and limits", (Notes(_limits(summary)),)))
    return write_report(run, title=f"Locality in {summary['model']}", summary=_stats(summary), sections=sections)


def plots(summary: Mapping[str, Any]) -> dict[str, MatplotlibFigure]:
    """The figures of a study by name; only those that have numbers."""
    figures: dict[str, MatplotlibFigure] = {}
    short = {
        "trigger": "another trigger",
        "caption": "the caption",
        "start": "another start",
        "others": "another image",
    }
    tables = summary["lines"]
    along = {f"to {name}": _along(tables[kind]) for kind, name in short.items() if len(tables.get(kind, ())) > 1}
    if along:  # one point is a row of the table, not a curve
        figures["lines"] = lines(along, xlabel="share of the way", ylabel="points that give the image")
    for name, table, label in (
        ("activations", summary["activations"], "mean L2 distance"),
        *((f"weights-{method}", rows, "intersection over union") for method, rows in summary["weights"].items()),
    ):
        layers = [row for layer, row in table.items() if layer != "all"]
        if layers:
            kinds = ("same", "others", "control", "captions", *(("chance",) if name.startswith("weights") else ()))
            series = {kind: (range(1, len(layers) + 1), [row[kind]["value"] for row in layers]) for kind in kinds}
            figures[name] = lines(series, xlabel="layer", ylabel=label)
    return figures


def _along(rows: Mapping[str, Any]) -> tuple[list[float], list[float | None]]:
    """Shares and success along a line; at its beginning the trigger gives the image, by selection."""
    return [0.0, *map(float, rows)], [1.0, *(row["share"]["value"] for row in rows.values())]


def _some(figures: Mapping[str, Figure], name: str) -> tuple[Figure, ...]:
    return (figures[name],) if name in figures else ()


def _stats(summary: Mapping[str, Any]) -> list[Stat]:
    images, starts = summary["images"], summary["starts"]
    return [
        Stat("memorized images studied", f"{images['memorized']} of {images['suspects']}", "enough starts came back"),
        Stat("starts that came back", f"{starts['suspect']['k']} of {starts['suspect']['n']}", "suspects"),
        Stat("the same on controls", f"{starts['control']['k']} of {starts['control']['n']}", "never-seen images"),
    ]


def _reading_table(summary: Mapping[str, Any]) -> Table:
    names = [*NULLS, "chance"]
    rows: list[list[CellLike]] = []
    for what, words in summary["reading"].items():
        cells: list[CellLike] = [None if n not in words else Cell(words[n], TONES[words[n]]) for n in names]
        rows.append([what, *cells])
    caption = "Triggers of one image, against each null; 'not told apart' where the 95 % interval holds the null."
    return Table(["", *names], rows, caption)


def _image_table(summary: Mapping[str, Any]) -> Table:
    rows = [
        [row["key"], f"{row['success']} of {row['starts']}", row["median"], row["caption"]]
        for row in summary["starts"]["by image"]
    ]
    return Table(["image", "starts that came back", "median similarity", "by its caption"], rows)


def _line_table(summary: Mapping[str, Any]) -> Table:
    rows: list[list[CellLike]] = [
        [LINES[kind], share, Cell(f"{row['k']} of {row['n']}"), _cell(row["share"])]
        for kind, table in summary["lines"].items()
        for share, row in table.items()
    ]
    return Table(["from a successful trigger", "share of the way", "gives the image", "mean over images"], rows)


def _embedding_table(summary: Mapping[str, Any]) -> Table:
    table = {k: v for k, v in summary["embeddings"].items() if k != "rank"}
    rows: list[list[CellLike]] = [_row(name, row) for name, row in table.items()]
    for part in ("numerical", "effective", "first_share"):
        ranks = summary["embeddings"].get("rank", {})
        cells: list[CellLike] = [_cell(ranks[name][part]) if name in ranks else None for name in _columns()]
        rows.append([f"rank of displacements, {part.replace('_', ' ')}", *cells, None])
    return Table(["", *_columns(), "over or minus others"], rows)


def _displacement_table(summary: Mapping[str, Any]) -> Table:
    both = summary["displacements"]
    rows: list[list[CellLike]] = [
        [name, _cell(row), _cell(both["controls"][name])] for name, row in both["memorized"].items()
    ]
    return Table(["displacements", "memorized", "controls"], rows)


def _layer_table(table: Mapping[str, Any]) -> Table:
    chance = any("chance" in row for row in table.values())
    headers = ["layer", *_columns(), "over or minus others", *(("chance", "selected") if chance else ())]
    rows: list[list[CellLike]] = []
    for layer, row in table.items():
        extra: list[CellLike] = [_cell(row["chance"]), row["selected"]] if chance else []
        rows.append([*_row(layer.replace("transformer_blocks", "blocks"), row), *extra])
    return Table(headers, rows, "Mean over images, with the 95 % interval over images.")


def _columns() -> tuple[str, ...]:
    return ("same", *NULLS)


def _row(name: str, row: Mapping[str, Any]) -> list[CellLike]:
    return [name, *(_cell(row[column]) for column in _columns()), _cell(row["against"]["others"])]


def _cell(estimate: Mapping[str, Any]) -> CellLike:
    if estimate["value"] is None:
        return None
    low, high = estimate["low"], estimate["high"]
    interval = f"{low:.3g} to {high:.3g}, n = {estimate['n']}" if low is not None else f"n = {estimate['n']}"
    return Cell(f"{estimate['value']:.3g}", detail=interval)


def _limits(summary: Mapping[str, Any]) -> list[str]:
    settings = summary["settings"]
    return [
        "Scattered triggers alone show nothing: independent Gaussian starts are sqrt(2 n) deviations apart before any "
        f"attack ({summary['starts']['apart']:.1f} here), and few steps cannot bring them together. Only the "
        "comparison with the nulls says something.",
        "Controls do not come back, so that their displacements are those of failed attacks: a difference to them may "
        "be one of success, not of memory. Triggers of other memorized images are the stricter null.",
        "A value projection is linear in the embedding: its activations and NeMo's selection partly measure the start.",
        "NeMo and Wanda are asked with one threshold for all embeddings "
        f"(theta {settings['theta']:g}, share {settings['sparsity']:g}); layers in which two sets are empty are "
        "missing, not in agreement.",
        "Intervals are bootstraps over images; with few images they are rough, and many comparisons were made.",
        "Agreement at these places does not show that removing them removes the memory: prune and attack again.",
    ]
