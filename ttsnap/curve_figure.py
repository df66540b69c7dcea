"""Reward against budget as a picture: one panel a reward, the schedule beside best-of-N."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from diffkit.runs.files import write_bytes_atomically
from ttsnap.curves import BudgetCurve

__all__ = ["curve_figure", "save_curves"]

OURS, BEST = "#3b6fd8", "#5b7083"


def curve_figure(curves: Sequence[BudgetCurve], *, finished: float | None = None) -> Figure:
    """Mean final reward over prompts at each budget; the band is the 95 % interval of the difference to best-of-N.

    Args:
        finished: cost of one finished candidate; the budgets are then drawn in it instead of the prices' unit.
    """
    unit = "unit of the prices" if finished is None else "finished candidates"
    figure = Figure(figsize=(4.6 * len(curves), 3.6), dpi=130, layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        ours, best = np.nanmean(curve.values, axis=0), np.nanmean(curve.best_of_n, axis=0)
        budgets = np.array(curve.budgets) / (finished or 1.0)
        band = 1.96 * curve.difference_error
        axes.plot(budgets, best, color=BEST, marker="o", markersize=3, label="best-of-N")
        axes.plot(budgets, ours, color=OURS, marker="o", markersize=3, label="with pruning")
        axes.fill_between(budgets, ours - band, ours + band, color=OURS, alpha=0.18, linewidth=0)
        gain = "" if curve.utilisation is None else f"\ngain {curve.utilisation.gain:+.1f} %"
        axes.set_title(f"{curve.name}{gain}", fontsize=10, loc="left", parse_math=False)
        axes.set(xlabel=f"budget for one prompt ({unit})", ylabel="mean final reward")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9)
    return figure


def save_curves(path: Path, curves: Sequence[BudgetCurve], *, finished: float | None = None) -> None:
    """Write the figure in the format of the path's ending; see :func:`curve_figure`."""
    buffer = io.BytesIO()
    curve_figure(curves, finished=finished).savefig(buffer, format=path.suffix.removeprefix("."))
    write_bytes_atomically(path, buffer.getvalue())
