"""How well looks at estimates agree with final rewards, as pictures. Means over prompts, 95 % intervals over prompts.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; lines are labelled where they end.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.parameterization import log_snr
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import FRACTIONS, expected_best_of_n, top_count, top_select
from ttsnap.noise_aware.held_out import taus
from ttsnap.reward_tensor import RewardTensor

__all__ = [
    "COLOURS",
    "REFERENCE",
    "gallery",
    "label_ends",
    "require_colours",
    "styled",
    "tau_by_noise",
    "top_select_curves",
]

Floats = NDArray[np.float64]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6D00")
REFERENCE = "#5B6670"  # best-of-N, chance


def require_colours(drawn: Sized, what: str) -> None:
    """Refuse more lines than there are colours.

    Raises:
        InputError: see there.
    """
    if len(drawn) > len(COLOURS):
        raise InputError(f"One plot tells at most {len(COLOURS)} {what} apart, got {len(drawn)}; draw fewer at once.")


def styled(axes: Axes, *, xlabel: str = "", ylabel: str = "", title: str = "") -> Axes:
    """The look that all plots share."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.margins(x=0.02)
    return axes


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], *, gap: float = 0.075) -> None:
    """Write each (x, y, text, colour) to the right of the axes at its height, spread so that none overlap.

    Args:
        gap: least distance of two lines of text, as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    order = sorted(range(len(ends)), key=lambda index: ends[index][1])
    at: list[float] = []
    above = 0.0  # half the height of the text below
    for index in order:
        half = gap * (ends[index][2].count("\n") + 1) / 2
        height = (ends[index][1] - low) / (high - low)
        at.append(height if not at else max(height, at[-1] + above + half))
        above = half
    over = max(0.0, at[-1] - 1.0) if at else 0.0
    for place, index in zip(at, order, strict=True):
        _, _, text, colour = ends[index]
        axes.annotate(text, (1.0, place - over), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points",
                      color=colour, fontsize=8.5, va="center", annotation_clip=False, parse_math=False)  # fmt: skip


def _band(axes: Axes, x: Sequence[float] | Floats, rows: Sequence[Floats], colour: str) -> float:
    """Draw mean and interval of each row of prompts; the last mean."""
    means = [float(row.mean()) for row in rows]
    bounds = np.array([bootstrap_mean(row) for row in rows])
    axes.plot(x, means, color=colour, marker="o", markersize=3.5, linewidth=1.6)
    axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.16, linewidth=0)
    return means[-1]


def _compared(tensors: Mapping[str, RewardTensor]) -> RewardTensor:
    if not tensors:
        raise InputError("There is no reward to draw.")
    require_colours(tensors, "rewards")
    first = next(iter(tensors.values()))
    if any(tensor.looks.shape != first.looks.shape for tensor in tensors.values()):
        raise InputError("Rewards in one plot must be of the same prompts, candidates and steps.")
    return first


def tau_by_noise(tensors: Mapping[str, RewardTensor], *, title: str = "") -> Figure:
    """Kendall's tau of each look with the final reward, per prompt; 1 is the same order, 0 is chance.

    The axis is the log-SNR of the latents that went into the step, noisy to clean, with the denoiser calls made until
    then above; calls alone where the noise levels are not known. The last step is left out: its tau is 1.

    Args:
        tensors: name -> rewards of the same prompts, candidates and steps.

    Raises:
        InputError: nothing to draw, more rewards than colours, shapes differ, or a reward has no tau.
    """
    first = _compared(tensors)
    figure = Figure(figsize=(7.4, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    ends: list[tuple[float, float, str, str]] = []
    for (name, tensor), colour in zip(tensors.items(), COLOURS, strict=False):
        correlations = {step: taus(tensor.looks[:, :, step], tensor.final) for step in _steps(tensor)}
        rows = {step: row[np.isfinite(row)] for step, row in correlations.items() if np.isfinite(row).any()}
        if not rows:
            raise InputError(
                f"The reward {name!r} has no Kendall's tau to draw: no prompt has scores that differ at a look before "
                f"the last step, and finals that differ; leave it out, or record more candidates."
            )
        at = [_level(first, step) for step in rows]
        ends.append((at[-1], _band(axes, at, list(rows.values()), colour), name, colour))
    axes.axhline(0, color=REFERENCE, linewidth=0.8)
    has_levels = first.sigmas is not None
    xlabel = (
        "log-SNR of the latents before the step (noisy to clean)" if has_levels else "denoiser calls before the look"
    )
    prompts, candidates = first.final.shape
    styled(axes, xlabel=xlabel, ylabel="Kendall's tau to the final reward",
           title=title or f"{prompts} prompts, {candidates} candidates each; mean and 95 % interval")  # fmt: skip
    if has_levels:
        steps = _steps(first)
        above = axes.secondary_xaxis("top")
        above.set_xticks([_level(first, step) for step in steps], [str(step + 1) for step in steps], fontsize=8)
        above.set_xlabel("denoiser calls before the look", fontsize=9)
        above.spines["top"].set_visible(False)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, ends)
    return figure


def _steps(tensor: RewardTensor) -> list[int]:
    """Recorded steps of a finite noise level, without the last one."""
    levels = tensor.sigmas or (1.0,) * tensor.calls
    return [step for step in tensor.recorded if step < tensor.calls - 1 and 0 < levels[step] < math.inf]


def _level(tensor: RewardTensor, step: int) -> float:
    return float(step + 1) if tensor.sigmas is None else log_snr(tensor.sigmas[step])


def top_select_curves(tensors: Mapping[str, RewardTensor], steps: Sequence[int] = (2, 6, 11)) -> Figure:
    """What a look loses when it keeps a share of the candidates: a column for each step.

    Above: the share of prompts whose best candidate is kept (higher is better); below: final reward between the best
    candidate and the best one kept (lower is better). Grey is keeping by chance, exactly.

    Raises:
        InputError: nothing to draw, more rewards than colours, shapes differ, or a step was not recorded.
    """
    first = _compared(tensors)
    if missing := [step for step in steps for tensor in tensors.values() if step not in tensor.recorded]:
        recorded = ", ".join(map(str, first.recorded))
        raise InputError(
            f"Step {missing[0]} was not recorded for all of {', '.join(tensors)}; recorded are {recorded}."
        )
    figure = Figure(figsize=(3.0 * len(steps) + 1.2, 5.4), dpi=120, layout="constrained")
    grid = figure.subplots(2, len(steps), sharex=True, sharey="row", squeeze=False)
    for column, step in enumerate(steps):
        _top_select_column(grid[:, column], tensors, step)
        grid[0, column].set_title(f"after {step + 1} denoiser calls", fontsize=10, loc="left")
    grid[0, 0].set_ylabel("best candidate kept\n(% of prompts)")
    grid[1, 0].set_ylabel("final reward lost")
    for axes in grid[1]:
        axes.set_xlabel("candidates kept (%)")
    grid[0, 0].set_ylim(0, 103)
    grid[1, 0].set_ylim(bottom=0)
    return figure


def _top_select_column(pair: NDArray[Any], tensors: Mapping[str, RewardTensor], step: int) -> None:
    shares = 100 * np.array(FRACTIONS)
    size = next(iter(tensors.values())).final.shape[1]
    counts = [top_count(fraction, size) for fraction in FRACTIONS]
    for axes in pair:
        styled(axes)
    for position, ((name, tensor), colour) in enumerate(zip(tensors.items(), COLOURS, strict=False)):
        selection = top_select(tensor.looks[:, :, step], tensor.final)
        complete = np.isfinite(selection.gap).all(axis=1)
        if not complete.any():
            continue
        _band(pair[0], shares, list(100 * selection.accuracy[complete].T), colour)
        _band(pair[1], shares, list(selection.gap[complete].T), colour)
        pair[0].text(0.97, 0.05 + 0.1 * (len(tensors) - position), name, color=colour, fontsize=8.5, ha="right",
                     transform=pair[0].transAxes, parse_math=False)  # fmt: skip
    final = next(iter(tensors.values())).final
    best = np.nanmax(final, axis=1)
    lost = [float(np.nanmean(best - expected_best_of_n(final, count))) for count in counts]
    pair[0].plot(shares, 100 * np.array(counts) / size, color=REFERENCE, linestyle="--", linewidth=1.2)
    pair[1].plot(shares, lost, color=REFERENCE, linestyle="--", linewidth=1.2)
    pair[0].text(0.97, 0.05, "chance", color=REFERENCE, fontsize=8.5, ha="right", transform=pair[0].transAxes)


def gallery(rows: Mapping[str, Sequence[Any]], captions: Mapping[str, Sequence[str]], columns: Sequence[str]) -> Figure:
    """Pictures in rows with a caption below each: one row a name, one column a prompt.

    Args:
        rows: name -> PIL images, one for each column.
        captions: name -> what stands below them.
        columns: what stands above them; long texts are wrapped.
    """
    figure = Figure(figsize=(1.9 * len(columns) + 0.6, 2.15 * len(rows) + 0.3), dpi=110, layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, picture, caption in zip(line, pictures, captions[name], strict=True):
            axes.imshow(picture, interpolation="nearest")
            axes.set_xlabel(caption, fontsize=8.5, parse_math=False)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=9.5, parse_math=False)
    for axes, text in zip(grid[0], columns, strict=True):
        axes.set_title(textwrap.fill(text, 24), fontsize=8.5, parse_math=False)
    return figure
