"""Results of a comparison: figures with intervals over prompts, a plot, a sheet of pictures, a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from diffkit.stats import bootstrap_mean

if TYPE_CHECKING:
    from diffkit.report import Table
    from diffkit.report.html import CellLike
    from diffkit.runs import Run

__all__ = ["BASELINE", "difference_figure", "picture_sheet", "summarise_searches", "write_page"]

BASELINE = "best-of-n"
INK, QUIET, ABOVE, BELOW = "#1b1f24", "#8a94a3", "#2f6fb3", "#c2410c"
SHOWN = 12  # prompts on the sheet of pictures


def summarise_searches(
    items: Sequence[dict[str, Any]], *, higher_is_better: bool = True, held_out: Mapping[str, bool] | None = None
) -> list[dict[str, Any]]:
    """One row for each strategy; figures that cannot be known are None.

    ``reward_gain`` and ``judged_gain`` are mean differences to best-of-N on the prompts that both could score, with
    95 % bootstrap intervals over prompts (None with one prompt); positive is better than best-of-N, whatever the
    reward's direction.

    Args:
        held_out: held-out reward -> whether higher is better; each row then has ``held_out``, by name the mean
            ``reward`` and its ``gain`` as above.
    """
    labels = list(dict.fromkeys(item["search"] for item in items))
    by_label = {label: {item["index"]: item for item in items if item["search"] == label} for label in labels}
    sign = 1.0 if higher_is_better else -1.0
    rows = []
    for label in labels:
        scored = [item for item in by_label[label].values() if item["error"] is None]
        reference = by_label.get(BASELINE, {}) if label != BASELINE else {}
        rows.append(
            {
                "search": label,
                "prompts": len(by_label[label]),
                "failed": len(by_label[label]) - len(scored),
                "reward": _mean(item["reward"] for item in scored),
                "reward_gain": _difference(by_label[label], reference, "reward", sign),
                "judged": _mean(item["judged"] for item in scored),
                "judged_gain": _difference(by_label[label], reference, "judged", 1.0),
                "candidates": _mean(item["candidates"] for item in scored),
                "calls": _mean(item["cost"]["calls"] for item in scored),
                "spent_share": _mean(item["spent"] / item["limit"] for item in scored),
                "unspent_share": _mean(1 - item["spent"] / item["limit"] for item in scored),
                "seconds": _mean(item["seconds"] for item in scored),
            }
        )
        if held_out:
            rows[-1]["held_out"] = {
                name: _held_out(by_label[label], reference, name, 1.0 if higher else -1.0)
                for name, higher in held_out.items()
            }
    return rows


def _held_out(
    mine: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], name: str, sign: float
) -> dict[str, Any]:
    """A held-out reward's mean and its paired difference to best-of-N."""

    def scores(items: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
        return {index: {name: item.get("held_out", {}).get(name)} for index, item in items.items()}

    own = scores(mine)
    return {
        "reward": _mean(item[name] for item in own.values()),
        "gain": _difference(own, scores(reference), name, sign),
    }


def _mean(values: Any) -> float | None:
    listed = [value for value in values if value is not None]
    return float(np.mean(listed)) if listed else None


def _difference(
    mine: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], name: str, sign: float
) -> dict[str, float | None] | None:
    """Mean paired difference with its interval, on the prompts where both are known."""
    pairs = [
        sign * (float(mine[index][name]) - float(reference[index][name]))
        for index in sorted(mine.keys() & reference.keys())
        if mine[index].get(name) is not None and reference[index].get(name) is not None
    ]
    if not pairs:
        return None
    low, high = bootstrap_mean(pairs) if len(pairs) > 1 else (None, None)
    return {"mean": float(np.mean(pairs)), "low": low, "high": high, "n": len(pairs)}


def table_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str | None]]]:
    """Headers and cells of the table."""
    headers = [
        "search", "reward", f"over {BASELINE}", "judged right", f"over {BASELINE}", "candidates", "calls", "unspent",
        "s a prompt", "failed",
    ]  # fmt: skip
    cells = [
        [
            row["search"], _number(row["reward"], ".4f"), _interval(row["reward_gain"], 4), _percent(row["judged"]),
            _interval(row["judged_gain"], 3), _number(row["candidates"], ".1f"), _number(row["calls"], ".1f"),
            _percent(row["unspent_share"]), _number(row["seconds"], ".2f"), f"{row['failed']} of {row['prompts']}",
        ]
        for row in rows
    ]  # fmt: skip
    names = list(rows[0].get("held_out", {})) if rows else []
    for name in reversed(names):
        headers[3:3] = [f"held out: {name}", f"over {BASELINE}"]
        for row, line in zip(rows, cells, strict=True):
            figures = row["held_out"][name]
            line[3:3] = [_number(figures["reward"], ".4f"), _interval(figures["gain"], 4)]
    return headers, cells


def _number(value: float | None, form: str) -> str | None:
    return None if value is None else format(value, form)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _interval(value: dict[str, float | None] | None, digits: int) -> str | None:
    if value is None:
        return None
    if value["low"] is None:
        return f"{value['mean']:+.{digits}f}"
    return f"{value['mean']:+.{digits}f} [{value['low']:+.{digits}f}, {value['high']:+.{digits}f}]"


def difference_figure(rows: Sequence[dict[str, Any]], *, reward: str, budget: str) -> Figure:
    """Every strategy's difference to best-of-N with its interval: reward, and judged accuracy where it is known."""
    panels = [("reward_gain", f"reward '{reward}'"), ("judged_gain", "share of prompts judged right")]
    panels = [panel for panel in panels if any(row[panel[0]] is not None for row in rows)]
    figure = Figure(figsize=(4.2 * max(len(panels), 1) + 1, 0.42 * len(rows) + 1.4), dpi=130, layout="constrained")
    for column, (name, label) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), column + 1)
        shown = [row for row in rows if row[name] is not None]
        for place, row in enumerate(shown):
            gain = row[name]
            ends = [gain["mean"] if end is None else end for end in (gain["low"], gain["high"])]
            unsure = gain["low"] is None or ends[0] <= 0 <= ends[1]
            colour = QUIET if unsure else ABOVE if gain["mean"] > 0 else BELOW
            axes.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(gain["mean"], place, "o", color=colour, markersize=6)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(shown)), [row["search"] for row in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel(f"{label}:\ndifference to {BASELINE}, 95 % interval", fontsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color=QUIET, alpha=0.25)
    figure.suptitle(f"{max((row['prompts'] for row in rows), default=0)} prompts, {budget} each", fontsize=10, x=0.01,
                    ha="left")  # fmt: skip
    return figure


def picture_sheet(items: Sequence[dict[str, Any]], folder: Path, *, shown: int = SHOWN) -> Figure:
    """Winners of the first prompts: a row for each prompt, a column for each strategy, the reward below.

    A green frame is judged right, an orange one wrong; without a judge there is none.
    """
    labels = list(dict.fromkeys(item["search"] for item in items))
    indices = sorted({item["index"] for item in items})[:shown]
    by_place = {(item["search"], item["index"]): item for item in items}
    figure = Figure(figsize=(1.25 * len(labels) + 2.4, 1.4 * len(indices) + 0.4), dpi=110, layout="constrained")
    grid = figure.subplots(len(indices), len(labels), squeeze=False)
    for line, index in zip(grid, indices, strict=True):
        for axes, label in zip(line, labels, strict=True):
            item = by_place[label, index]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(item.get("judged") is not None)
            axes.spines[:].set(color="#2f9e6e" if item.get("judged") else "#d9822b", linewidth=2.5)
            if "image" in item:
                axes.imshow(Image.open(folder / item["image"]), interpolation="nearest")
                axes.set_xlabel(f"{item['reward']:.3f}", fontsize=7)
            else:
                axes.set_xlabel("no score", fontsize=7)
            if index == indices[0]:
                axes.set_title(label, fontsize=8, parse_math=False)
        words = by_place[labels[0], index]["prompt"]
        line[0].set_ylabel(_wrapped(words), fontsize=6.5, rotation=0, ha="right", va="center", parse_math=False)
    return figure


def _wrapped(text: str, width: int = 22) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:4])


def to_image(figure: Figure) -> Image.Image:
    """The figure as a picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def winners_table(items: Sequence[dict[str, Any]], folder: Path, *, shown: int = SHOWN) -> Table:
    """A row for each of the first prompts: every strategy's winner with its reward, and the judge's verdict."""
    from diffkit.report import Picture, Table

    labels = list(dict.fromkeys(item["search"] for item in items))
    by_place = {(item["search"], item["index"]): item for item in items}
    rows: list[list[CellLike]] = []
    for index in sorted({item["index"] for item in items})[:shown]:
        row: list[CellLike] = [by_place[labels[0], index]["prompt"]]
        for label in labels:
            item = by_place[label, index]
            word = {True: ", right", False: ", wrong", None: ""}[item.get("judged")]
            has_image = "image" in item
            row.append(Picture.of(folder / item["image"], label, f"{item['reward']:.3f}{word}") if has_image else None)
        rows.append(row)
    return Table(["prompt", *labels], rows)


def write_page(run: Run, rows: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]]) -> Path:
    """Save ``images/differences.png``, ``images/pictures.png`` and ``report.html`` of an open run."""
    from diffkit.report import Figure as Plot
    from diffkit.report import Paragraph, Section, Table, write_report

    config = run.record["config"]
    plot = difference_figure(rows, reward=config["reward"], budget=config["budget"])
    run.save_image("differences", to_image(plot))
    run.save_image("pictures", to_image(picture_sheet(items, run.folder)))
    headers, cells = table_rows(rows)
    note = (
        f"Every strategy had {config['budget']} for each prompt, counted in FLOP of denoising, decoding and "
        f"scoring. Intervals are 95 %, by bootstrap over prompts of the differences to {BASELINE}."
    )
    if "group" in config:
        note += f" With an adaptive budget {config['group']} prompts at a time shared what they may cost together."
    sections = [
        Section("Strategies", (Paragraph(note), Table(headers, cells))),
        Section("Differences", (Plot.of(f"To {BASELINE}, on the same prompts", plot),)),
        Section("Winners of the first prompts", (winners_table(items, run.folder),)),
    ]
    return write_report(run, title="Searches at equal cost", sections=sections)
