"""How well scores of estimates rank a prompt's candidates, level by level, on prompts that were not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffkit.parallel import gather, shard
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import kendall
from ttsnap.noise_aware.data import Estimates, recorded_name
from ttsnap.noise_aware.reward import LinearCalibration

__all__ = ["LevelTau", "Predict", "fit_calibration", "compare_level", "predictions", "recorded", "tau_figure"]

Floats = NDArray[np.float64]
Predict = Callable[[Tensor, Sequence[str], float], Tensor]  # images, prompts, log-SNR -> scores
IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class LevelTau:
    """Per-prompt Kendall tau to the final reward at one level, before and after: means, 95 % intervals over prompts.

    Attributes:
        step: index of the recorded step.
        log_snr: its noise level.
        prompts: prompts in the means; those whose scores are all equal have no tau and are left out.
        before, after: mean tau of the plain and of the distilled reward; None without prompts.
        gain: mean of the differences.
        before_interval, after_interval, gain_interval: by bootstrap over prompts; None with fewer than two.
    """

    step: int
    log_snr: float
    prompts: int
    before: float | None = None
    after: float | None = None
    gain: float | None = None
    before_interval: tuple[float, float] | None = None
    after_interval: tuple[float, float] | None = None
    gain_interval: tuple[float, float] | None = None


@torch.no_grad()
def predictions(estimates: Estimates, predict: Predict, positions: Sequence[int], level: int, log_snr: float) -> Floats:
    """Scores (len(positions), N) of every candidate of every prompt: none is padded, none dropped, a broken one NaN.

    With several processes each scores its share of the prompts and all get everything.
    """
    mine = shard(list(positions))
    scored: list[list[float]] = []
    together = max(1, IMAGES_AT_ONCE // estimates.trajectories.candidates)
    for first in range(0, len(mine), together):
        some = mine[first : first + together]
        images = torch.cat([estimates.of(position, level) for position in some]).float() / 255
        prompts = [
            estimates.trajectories.prompts[position]
            for position in some
            for _ in range(estimates.trajectories.candidates)
        ]
        scores = predict(images, prompts, log_snr).float().cpu()
        column = estimates.trajectories.steps.index(estimates.steps[level])
        unseen = torch.cat([estimates.trajectories[position].unseen[:, column] for position in some])
        scored += scores.masked_fill(unseen, torch.nan).view(len(some), -1).tolist()
    return np.array(gather(scored), dtype=np.float64).reshape(len(positions), -1)


def recorded(estimates: Estimates, name: str, positions: Sequence[int], level: int) -> Floats:
    """The plain reward's scores (len(positions), N) of the estimates, as they were recorded."""
    trajectories = estimates.trajectories
    name = recorded_name(trajectories, name)
    column = trajectories.steps.index(estimates.steps[level])
    return np.stack(
        [trajectories[position].tensor(f"rewards.{name}")[:, column].double().numpy() for position in positions]
    )


def taus(scores: Floats, final: Floats) -> Floats:
    """Kendall's tau-b (P,) of scores (P, N) and final rewards (P, N), NaN where a row is constant.

    Candidates without a score are left out of their row.
    """
    rows = []
    for row, truth in zip(scores, final, strict=True):
        finite = np.isfinite(row) & np.isfinite(truth)
        rows.append(float(kendall(row[finite], truth[finite])) if finite.sum() > 1 else float("nan"))
    return np.array(rows)


def compare_level(*, step: int, log_snr: float, before: Floats, after: Floats, final: Floats) -> LevelTau:
    """Both rewards' agreement with the final one over prompts where both have a tau.

    Args:
        before, after, final: (P, N) scores of the plain and the distilled reward, and the final rewards.
    """
    old, new = taus(before, final), taus(after, final)
    both = np.isfinite(old) & np.isfinite(new)
    if not both.any():
        return LevelTau(step, log_snr, 0)
    values = (old[both], new[both], new[both] - old[both])
    means = [float(value.mean()) for value in values]
    intervals = [tuple(bootstrap_mean(value)) if len(value) > 1 else None for value in values]
    return LevelTau(step, log_snr, int(both.sum()), *means, *intervals)  # type: ignore[arg-type]


def fit_calibration(scores: Floats, final: Floats) -> LinearCalibration:
    """The straight line from scores (P, N) to final rewards (P, N): its slope is that within prompts.

    A slope that is not above 0 says that nothing was learned; the scores keep their own scale then.
    """
    finite = np.isfinite(scores) & np.isfinite(final)
    x, y = np.where(finite, scores, np.nan), np.where(finite, final, np.nan)
    x_within, y_within = x - np.nanmean(x, axis=1, keepdims=True), y - np.nanmean(y, axis=1, keepdims=True)
    variance = float(np.nansum(x_within**2))
    slope = float(np.nansum(x_within * y_within)) / variance if variance > 0 else 1.0
    slope = slope if slope > 0 else 1.0
    return LinearCalibration(slope, float(np.nanmean(y) - slope * np.nanmean(x)))


def tau_figure(levels: Sequence[LevelTau], path: Path) -> None:
    """Tau by noise level before and after, with intervals, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    for name, colour in (("before", "#b45309"), ("after", "#1f5fa8")):
        measured = [level for level in levels if getattr(level, name) is not None]
        x = [level.log_snr for level in measured]
        bounds = np.array([getattr(level, f"{name}_interval") or (np.nan, np.nan) for level in measured]).reshape(-1, 2)
        axes.plot(x, [getattr(level, name) for level in measured], marker="o", markersize=4, color=colour,
                  label={"before": "plain reward", "after": "distilled reward"}[name])  # fmt: skip
        axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="#9aa1ab", linewidth=0.8)
    prompts = max((level.prompts for level in levels), default=0)
    axes.set_xlabel("log-SNR of the latents that went into the step (noisy to clean)")
    axes.set_ylabel("Kendall tau to the final reward")
    axes.set_title(f"{prompts} held-out prompts, mean and 95 % interval")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
