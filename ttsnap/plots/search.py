"""Figures of one search: the scores at each look, and the decoded estimates with a frame around those kept."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ttsnap.search.session import StageTrace

__all__ = ["contact_sheet", "look_figure", "score_figure"]

KEPT, DROPPED, WINNER = "#1f5fa8", "#b9bec6", "#c2410c"


def score_figure(
    trace: Sequence[StageTrace], *, title: str, winners: Sequence[int | None] | None = None
) -> Image.Image:
    """Every candidate's score at every look of one prompt: grey until dropped, blue while kept, orange for winners.

    Args:
        winners: their seeds; those that the last look kept by default.
    """
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    seeds = {index: seed for look in trace for index, seed in zip(look.candidates, look.seeds, strict=True)}
    best = {index for index, seed in seeds.items()
            if (index in trace[-1].survivors if winners is None else seed in winners)}  # fmt: skip
    looked: Counter[int] = Counter()
    ahead = {look.step: f" + {look.lookahead} ahead" for look in trace if look.lookahead}
    for look in trace:
        looked[look.step] += len(look.candidates)
    finalists = {index for look in trace if look.step == max(looked) for index in look.candidates}
    for index in seeds:
        points = [
            (look.step, score)
            for look in trace
            if index in look.candidates and (score := look.scores[look.candidates.index(index)]) is not None
        ]
        if not points:
            continue
        colour = WINNER if index in best else KEPT if index in finalists else DROPPED
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.2, color=colour,
                  zorder=3 if index in best else 2 if index in finalists else 1)  # fmt: skip
    axes.set_xticks(list(looked), [f"{step}{ahead.get(step, '')}\n{count} left" for step, count in looked.items()])
    axes.set(xlabel="look after step", ylabel="reward of the estimate")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _best_first(look: StageTrace) -> list[int]:
    """Positions of the candidates: survivors first, the higher score first, those without a score last."""
    scored = [(look.survivors.count(index), score) if score is not None else (-1, 0.0)
              for index, score in zip(look.candidates, look.scores, strict=True)]  # fmt: skip
    return sorted(range(len(scored)), key=lambda position: scored[position], reverse=True)


def contact_sheet(trace: Sequence[StageTrace], *, width: int = 12, side: int = 64) -> Image.Image:
    """The best ``width`` estimates of every look of one prompt, one row a look, best first, those kept framed."""
    cell = side + 8
    sheet = Image.new("RGB", (width * cell, len(trace) * cell), "white")
    for row, look in enumerate(trace):
        for column, position in enumerate(_best_first(look)[:width]):
            kept = look.candidates[position] in look.survivors
            picture = ImageOps.fit(look.previews[position].convert("RGB"), (side, side))
            framed = ImageOps.expand(picture, border=3, fill=KEPT if kept else "white")
            sheet.paste(framed, (column * cell + 1, row * cell + 1))
    return sheet


def look_figure(trace: Sequence[StageTrace], *, width: int = 16) -> Figure:
    """The estimates at every look of one prompt, a row for each look, best first, each with its score.

    Candidates that were kept have a blue frame, winners an orange one; pruned ones are pale. At most ``width`` a row.

    Args:
        trace: with previews, as ``previews=True`` keeps them.
    """
    columns = min(width, max(len(look.candidates) for look in trace))
    figure = Figure(figsize=(0.78 * columns + 1.3, 1.02 * len(trace)), dpi=120, layout="constrained")
    grid = figure.subplots(len(trace), columns, squeeze=False)
    for line, look in zip(grid, trace, strict=True):
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        frame = WINNER if look is trace[-1] else KEPT
        for axes, position in zip(line, _best_first(look), strict=False):
            kept = look.candidates[position] in look.survivors
            axes.imshow(look.previews[position], alpha=1.0 if kept else 0.45, interpolation="nearest")
            axes.spines[:].set(visible=kept, color=frame, linewidth=2.5)
            score = look.scores[position]
            axes.set_xlabel("no score" if score is None else f"{score:.2f}", fontsize=7, labelpad=2)
        calls = f"{look.step + 1} + {look.lookahead}" if look.lookahead else look.step + 1
        line[0].set_ylabel(f"{calls} calls\n{len(look.candidates)} → {len(look.survivors)}", fontsize=8,
                           rotation=0, ha="right", va="center")  # fmt: skip
    return figure
