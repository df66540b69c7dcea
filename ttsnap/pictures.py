"""What a search looked like: scores from look to look, and the decoded estimates with the survivors framed."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image, ImageOps

from ttsnap.run import StageTrace

__all__ = ["contact_sheet", "score_figure"]

KEPT, DROPPED, WINNER = "#1f5fa8", "#b9bec6", "#c2410c"


def score_figure(trace: Sequence[StageTrace], *, title: str) -> Image.Image:
    """Every candidate's score at every look of one prompt: grey until dropped, blue while kept, orange for winners."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    winners = set(trace[-1].survivors)
    finalists = set(trace[-1].candidates)
    for index in trace[0].candidates:
        points = [
            (look.step, score)
            for look in trace
            if index in look.candidates and (score := look.scores[look.candidates.index(index)]) is not None
        ]
        if not points:
            continue
        colour = WINNER if index in winners else KEPT if index in finalists else DROPPED
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=1.2, color=colour,
                  zorder=3 if index in winners else 2 if index in finalists else 1)  # fmt: skip
    axes.set_xticks([look.step for look in trace], [f"{look.step}\n{len(look.candidates)} left" for look in trace])
    axes.set(xlabel="look after step", ylabel="reward of the estimate")
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def contact_sheet(trace: Sequence[StageTrace], *, width: int = 12, side: int = 64) -> Image.Image:
    """The best ``width`` estimates of every look of one prompt, one row a look, best first, survivors framed."""
    cell = side + 8
    sheet = Image.new("RGB", (width * cell, len(trace) * cell), "white")
    for row, look in enumerate(trace):
        scored = [(look.survivors.count(i), s) if s is not None else (-1, 0.0)
                  for i, s in zip(look.candidates, look.scores, strict=True)]  # fmt: skip
        order = sorted(range(len(scored)), key=lambda position: scored[position], reverse=True)[:width]
        for column, position in enumerate(order):
            kept = look.candidates[position] in look.survivors
            picture = ImageOps.fit(look.previews[position].convert("RGB"), (side, side))
            framed = ImageOps.expand(picture, border=3, fill=KEPT if kept else "white")
            sheet.paste(framed, (column * cell + 1, row * cell + 1))
    return sheet
