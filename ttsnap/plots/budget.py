"""Reward against budget as a picture: one panel a reward, ways to search beside best-of-N; and what a schedule does."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffkit.runs.files import write_bytes_atomically
from ttsnap.evaluation.budget_curves import GainCurve
from ttsnap.plots.alignment import COLOURS, REFERENCE, label_ends, require_colours, styled
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["budget_figure", "curve_figure", "save_curves", "schedule_figure"]


def budget_figure(panels: Mapping[str, Mapping[str, GainCurve]], *, finished: float | None = None) -> Figure:
    """Mean final reward over prompts at each budget (above), and its difference to best-of-N at that budget (below).

    The bands are 95 % intervals over prompts of the difference to best-of-N. The gain in per cent is the
    budget-utilisation metric of :func:`ttsnap.alignment.budget_utilisation`.

    Args:
        panels: title -> name of a search -> its curve; the curves of a panel share their best-of-N.
        finished: cost of one finished candidate; the budgets are then drawn in it instead of the prices' unit.

    Raises:
        InputError: more searches in a panel than colours.
    """
    unit = "unit of the prices" if finished is None else "finished candidates"
    figure = Figure(figsize=(6.4 * len(panels), 5.4), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(panels), squeeze=False, sharex="col", height_ratios=(3, 2))
    for column, (title, curves) in enumerate(panels.items()):
        upper, lower = grid[:, column]
        styled(upper, ylabel="mean final reward", title=title)
        styled(lower, xlabel=f"budget for one prompt ({unit})", ylabel="difference\nto best-of-N")
        _reward_panel(upper, lower, curves, finished or 1.0)
    return figure


def _reward_panel(upper: Axes, lower: Axes, curves: Mapping[str, GainCurve], finished: float) -> None:
    require_colours(curves, "searches")
    first = next(iter(curves.values()))
    at = np.array(first.budgets) / finished
    best = np.nanmean(first.best_of_n, axis=0)
    upper.plot(at, best, color=REFERENCE, linewidth=1.4, linestyle="--")
    lower.axhline(0, color=REFERENCE, linewidth=1.4, linestyle="--")
    ends = [(at[-1], float(best[-1]), "best-of-N", REFERENCE)]
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        at = np.array(curve.budgets) / finished
        ours, band = np.nanmean(curve.values, axis=0), 1.96 * curve.difference_error
        away = np.nanmean(curve.values - curve.best_of_n, axis=0)
        for axes, middle in ((upper, ours), (lower, away)):
            axes.plot(at, middle, color=colour, marker="o", markersize=3, linewidth=1.5)
            axes.fill_between(at, middle - band, middle + band, color=colour, alpha=0.16, linewidth=0)
        ends.append((at[-1], float(ours[-1]), f"{name}\n{_gain(curve)}".strip(), colour))
    label_ends(upper, ends)


def _gain(curve: GainCurve) -> str:
    if curve.utilisation is None or math.isnan(curve.utilisation.gain):
        return ""
    gain, low, high = curve.utilisation
    return f"gain {gain:+.0f} %" + ("" if math.isnan(low) else f" ({low:+.0f} to {high:+.0f})")


def curve_figure(curves: Sequence[GainCurve], *, finished: float | None = None, name: str = "with pruning") -> Figure:
    """The same search for several rewards, a panel each; see :func:`budget_figure`."""
    return budget_figure({curve.name: {name: curve} for curve in curves}, finished=finished)


def save_curves(
    path: Path, curves: Sequence[GainCurve], *, finished: float | None = None, name: str = "with pruning"
) -> None:
    """Write the figure in the format of the path's ending; see :func:`curve_figure`."""
    buffer = io.BytesIO()
    curve_figure(curves, finished=finished, name=name).savefig(buffer, format=path.suffix.removeprefix("."))
    write_bytes_atomically(path, buffer.getvalue())


def schedule_figure(schedules: Mapping[str, tuple[PruningSchedule, int]], calls: int) -> Figure:
    """How many candidates are alive during each denoiser call; the area under a line is what its calls cost.

    Args:
        schedules: name -> schedule and the candidates it begins with, as the budget buys them; best-of-N first.
        calls: T, denoiser calls of one finished candidate.

    Raises:
        InputError: more schedules than colours.
    """
    require_colours(schedules, "schedules")
    figure = Figure(figsize=(7.4, 3.4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    ends: list[tuple[float, float, str, str]] = []
    for (name, (schedule, n)), colour in zip(schedules.items(), (REFERENCE, *COLOURS[1:]), strict=False):
        stages = schedule.stages(n, calls)
        edges = [0, *(stage.stop for stage in stages)]
        axes.stairs([stage.candidates for stage in stages], edges, baseline=None, color=colour, linewidth=1.8)
        ends.append((calls, stages[-1].candidates, f"{name}: {n} → {stages[-1].candidates}", colour))
    styled(axes, xlabel="denoiser calls made", ylabel="candidates alive")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, calls)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, ends)
    return figure
