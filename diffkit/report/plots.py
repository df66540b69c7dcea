"""Plots as pure functions: numbers in, a matplotlib figure out. No global state, no display."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffkit.stats import Rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "budget_curves", "histogram", "lines", "null_distributions", "quantiles", "rate_curves", "survival_curves",
    "to_svg",
]  # fmt: skip

INK = "#010203"  # a colour nobody chooses; `to_svg` turns it into the page's own text colour
PALETTE = ("#3b6fd8", "#d9822b", "#2f9e6e", "#c2417c", "#7a5cc9", "#5b7083")
QUIET = "#8a94a3"
LINES = 200  # of one group in one plot; a line takes about a kilobyte of the page

Curve = Sequence[float | None]


def _canvas(xlabel: str, ylabel: str, size: tuple[float, float] = (5.2, 3.2)) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=QUIET, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    for text in (axes.set_xlabel(xlabel, color=INK), axes.set_ylabel(ylabel, color=INK)):
        text.set_parse_math(False)
    return figure, axes


def _legend(axes: Axes) -> None:
    if not axes.get_legend_handles_labels()[0]:
        return
    legend = axes.legend(  # above the plot, where it hides no data
        frameon=False, labelcolor=INK, fontsize="small", ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0)
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _threshold(axes: Any, value: float | None, label: str, *, vertical: bool = False) -> None:
    if value is not None:
        draw = axes.axvline if vertical else axes.axhline
        draw(value, color=PALETTE[3], linestyle=(0, (4, 3)), linewidth=1.2, label=f"{label} {value:.3g}")


def _array(curve: Curve) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in curve], dtype=np.float64)


def budget_curves(
    budgets: Sequence[float],
    suspects: Sequence[Curve],
    controls: Sequence[Curve],
    *,
    threshold: float | None = None,
    xlabel: str = "attack budget (steps)",
    ylabel: str = "similarity to the original",
) -> Figure:
    """What an attack reaches with more budget: one thin line an image, one thick line the median of its group.

    Of a group of more than 200 images the 50 that reach most are drawn, and a band from 5 to 95 % of all.

    Args:
        budgets: (B,) rising.
        suspects: for each suspect (B,) similarities; None where not scored, drawn as a gap.
        controls: the same for the controls.
        threshold: the copy detector's operating point, drawn dashed.
    """
    figure, axes = _canvas(xlabel, ylabel)
    places = np.arange(len(budgets))  # budgets such as 0, 1, 10, 50 would crowd on a linear axis, and 0 has no log
    for name, group, colour in (("controls", controls, QUIET), ("suspects", suspects, PALETTE[0])):
        curves = [_array(curve) for curve in group]
        for curve in curves:
            if curve.shape != places.shape:
                raise ValueError(f"{name}: expected curves of {len(budgets)} points, got {curve.size}")
        many = len(curves) > LINES
        for curve in sorted(curves, key=_highest, reverse=True)[: LINES // 4] if many else curves:
            axes.plot(places, curve, color=colour, alpha=0.28, linewidth=0.9)
        if curves:
            low, middle, high = (_quantiles(curves, share) for share in (0.05, 0.5, 0.95))
            axes.plot(places, middle, color=colour, linewidth=2.6, label=f"{name}, median of {len(curves)}")
            if many:
                axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0, label=f"{name}, 5 to 95 %")
    _threshold(axes, threshold, "threshold")
    axes.set_xticks(places, [f"{budget:g}" for budget in budgets])
    _legend(axes)
    return figure


def _highest(curve: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return max(curve[~np.isnan(curve)], default=-np.inf)


def _quantiles(curves: Sequence[np.ndarray[Any, np.dtype[np.float64]]], share: float) -> list[float]:
    """(B,) quantile of what is known at each place of curves of equal length; NaN where nothing is."""
    columns = np.stack(curves, axis=1)
    return [float(np.quantile(values, share)) if (values := row[~np.isnan(row)]).size else np.nan for row in columns]


def histogram(
    groups: Mapping[str, Sequence[float]], *, threshold: float | None = None, xlabel: str = "", bins: int = 24
) -> Figure:
    """Distributions of several groups over common bins; values that are not finite are left out.

    Bars are counts; where one group is more than ten times as large as another, shares of each group.

    Args:
        groups: name -> values.
        threshold: a vertical line.
        bins: number of bins over the range of all groups.
    """
    finite = {name: np.array([v for v in values if np.isfinite(v)]) for name, values in groups.items()}
    everything = np.concatenate([*finite.values(), np.empty(0)])
    edges = np.histogram_bin_edges(everything, bins=bins) if everything.size else np.linspace(0, 1, bins + 1)
    sizes = [values.size for values in finite.values() if values.size]
    shares = max(sizes, default=0) > 10 * min(sizes, default=0)
    figure, axes = _canvas(xlabel, "share of its group" if shares else "count")
    for index, (name, values) in enumerate(finite.items()):
        colour, weights = (
            PALETTE[index % len(PALETTE)],
            np.full(values.size, 1 / max(values.size, 1)) if shares else None,
        )
        label = f"{name} (n = {values.size})"
        axes.hist(values, bins=list(edges), weights=weights, color=colour, alpha=0.55, label=label)
    _threshold(axes, threshold, "threshold", vertical=True)
    _legend(axes)
    return figure


def null_distributions(
    groups: Mapping[str, Sequence[float]],
    densities: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    marks: Mapping[str, Sequence[float]],
    *,
    threshold: float | None = None,
    xlabel: str,
) -> Figure:
    """Groups as histograms of unit area, the distribution fitted to each as a line, and single values as marks below.

    Args:
        groups: name -> values.
        densities: name -> (x, density) of the fit.
        marks: name -> values, a row of short strokes each.
        threshold: a vertical line.
        xlabel: of the values.
    """
    figure, axes = _canvas(xlabel, "density")
    for (name, values), colour in zip(groups.items(), (QUIET, *PALETTE[1:3]), strict=False):
        axes.hist(list(values), bins="auto", density=True, color=colour, alpha=0.4, label=f"{name} (n = {len(values)})")
        if name in densities:
            axes.plot(*densities[name], color=colour, linewidth=1.8)
    for row, (name, values) in enumerate(marks.items()):
        colour = (PALETTE[0], PALETTE[5])[row % 2]
        height = -0.04 * (row + 1) * max(axes.get_ylim()[1], 1e-9)
        axes.plot(
            list(values), [height] * len(values), "|", color=colour, markersize=9, label=f"{name} ({len(values)})"
        )
    _threshold(axes, threshold, "threshold", vertical=True)
    _legend(axes)
    return figure


def quantiles(groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str) -> Figure:
    """Expected against observed quantiles of each group, and the diagonal on which they would agree."""
    figure, axes = _canvas(xlabel, ylabel, (3.6, 3.2))
    everything = [value for pair in groups.values() for column in pair for value in column]
    if everything:
        ends = (min(everything), max(everything))
        axes.plot(ends, ends, color=QUIET, linewidth=1)
    for (name, (expected, observed)), colour in zip(groups.items(), PALETTE, strict=False):
        axes.plot(list(expected), list(observed), "o", markersize=3.5, color=colour, label=name)
    _legend(axes)
    return figure


def lines(
    series: Mapping[str, tuple[Sequence[float], Curve]],
    *,
    xlabel: str,
    ylabel: str,
    threshold: float | None = None,
    markers: bool = True,
) -> Figure:
    """Named lines over a common axis: name -> (x, y); None in y is a gap."""
    figure, axes = _canvas(xlabel, ylabel)
    for index, (name, (x, y)) in enumerate(series.items()):
        colour = PALETTE[index % len(PALETTE)]
        axes.plot(
            list(x), _array(y), color=colour, linewidth=1.8, marker="o" if markers else "", markersize=4, label=name
        )
    _threshold(axes, threshold, "threshold")
    _legend(axes)
    return figure


def rate_curves(
    series: Mapping[str, Sequence[Rate]], x: Sequence[float], *, xlabel: str, ylabel: str = "share"
) -> Figure:
    """Shares along a common axis, each with the band of its interval; a share of nothing is a gap.

    Args:
        series: name -> a rate for each place of ``x``.
        x: (N,) rising.
    """
    figure, axes = _canvas(xlabel, ylabel)
    for (name, rates), colour in zip(series.items(), (*PALETTE[:2], QUIET, *PALETTE[2:]), strict=False):
        if len(rates) != len(x):
            raise ValueError(f"{name}: expected {len(x)} rates, got {len(rates)}")
        bounds = [rate["interval"] or (None, None) for rate in rates]
        low, high = (_array([bound[side] for bound in bounds]) for side in (0, 1))
        axes.fill_between(list(x), low, high, color=colour, alpha=0.13, linewidth=0)
        shares = _array([rate["share"] for rate in rates])
        axes.plot(list(x), shares, color=colour, linewidth=2.0, marker="o", markersize=4, label=name)
    axes.set_ylim(-0.03, 1.03)
    _legend(axes)
    return figure


def survival_curves(
    groups: Mapping[str, Sequence[tuple[float, float, float, float]]],
    *,
    end: float,
    xlabel: str = "attack budget (steps)",
    ylabel: str = "share not yet back",
) -> Figure:
    """Step curves that begin at 1, each with its band.

    Args:
        groups: name -> points (work, share after it, low, high), rising in work;
            the first is drawn in colour, the second quietly, as suspects and controls are elsewhere.
        end: where the axis ends.
    """
    figure, axes = _canvas(xlabel, ylabel)
    for (name, points), colour in zip(groups.items(), (PALETTE[0], QUIET, *PALETTE[1:]), strict=False):
        work = [0.0, *(point[0] for point in points), end]
        columns = [[1.0, *(point[i] for point in points)] for i in (1, 2, 3)]
        share, low, high = ([*column, column[-1]] for column in columns)
        axes.step(work, share, where="post", color=colour, linewidth=2.2, label=name)
        axes.fill_between(work, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(-0.03, 1.03)
    _legend(axes)
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page: no prolog, no metadata, the page's text colour as its ink."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffkit", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor").replace("#000000", "currentColor")  # what was left at matplotlib's black
