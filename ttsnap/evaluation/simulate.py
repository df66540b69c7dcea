"""What a pruning schedule would have given on recorded rewards: reward against budget, beside best-of-N."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffkit.console import format_table
from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.rewards.combine import Combine
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, Accounting
from ttsnap.evaluation.budget_curves import BudgetCurve, budget_curves, finished_cost, known_prices, read_budgets
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.trajectories.read import load_tensor

__all__ = ["Simulation", "default_budgets", "simulate", "tensor_notes"]

HEADERS = ("budget", "best-of", "reward", "candidates", "schedule", "reward", "difference", "95 % interval",
           "best survives", "unspent")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Simulation:
    """Reward against budget for one or several rewards; printed, it is a table for each.

    Attributes:
        curves: one for each reward.
        tensors: the rewards that were replayed.
        finished: cost of one finished candidate, in the unit of the curves' budgets.
        in_finished: whether the table counts budgets in finished candidates.
    """

    curves: tuple[BudgetCurve, ...]
    tensors: tuple[RewardTensor, ...]
    finished: float
    in_finished: bool = False

    def to_dict(self) -> list[dict[str, Any]]:
        """One entry for each reward with all figures, as JSON types; what is not defined is None."""
        return [_report(curve, tensor, self.finished) for curve, tensor in zip(self.curves, self.tensors, strict=True)]

    def table(self, curve: BudgetCurve) -> list[list[object]]:
        """Rows under ``HEADERS``, one for each budget of a curve."""
        unit, suffix = (self.finished, "x") if self.in_finished else (1.0, "")
        return [_row(point, unit, suffix) for point in _points(curve, unit)]

    def title(self, curve: BudgetCurve) -> str:
        """The name of the reward and its gain over best-of-N."""
        name = curve.name or "reward"
        if curve.utilisation is None or math.isnan(curve.utilisation.gain):
            return name
        gain, low, high = curve.utilisation
        return f"{name}: gain over best-of-N {gain:+.1f} % (95 % interval over prompts {low:+.1f} to {high:+.1f})"

    def notes(self, curve: BudgetCurve) -> list[str]:
        """Sentences on missing scores, repeated candidates and budgets that pay for more than were recorded."""
        notes = tensor_notes(self.tensors[self.curves.index(curve)])
        if any(bought.capped for bought in (*curve.allotments, *curve.best_allotments)):
            notes.append(
                f"{curve.name}: * marks budgets that pay for more candidates than were recorded; the gain is over the "
                "budgets before the first of them."
            )
        return notes

    def __repr__(self) -> str:
        """The tables with their notes."""
        return "\n".join(
            "\n".join([format_table(HEADERS, self.table(curve), title=self.title(curve)), *self.notes(curve)])
            for curve in self.curves
        )


def simulate(
    tensor: RewardTensor | Sequence[RewardTensor] | str | Path,
    schedule: PruningSchedule | str | Path = "2:0.4,6:0.4,11:0.5",
    budgets: str | Sequence[float] | None = None,
    *,
    prices: Prices | None = None,
    accounting: Accounting = "exact",
    combine: Combine | None = None,
    resamples: int = 50,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Simulation:
    """Replay a pruning schedule on recorded rewards and compare it with best-of-N at each budget. No model is run.

    Args:
        tensor: recorded rewards, several of the same candidates, or a file or folder with one reward that
            :func:`ttsnap.load_tensor` reads.
        schedule: steps and shares to keep, a ``.json`` file that ``fit`` wrote, or the name of a shipped one.
        budgets: for one prompt: numbers or ``"400:4000:200"`` in the unit of the prices, ``"2x:20x:1x"`` in finished
            candidates. By default 400 to 4000 for the published prices, else what best-of-2 to best-of-20 cost.
        prices: of a call, a decoding and a score; by default those that came with the rewards.
        accounting: how candidates are counted; see :mod:`ttsnap.evaluation.accounting`.
        combine: prune and choose by all rewards together: rank, zscore or pareto.
        resamples: random subsets of each prompt's candidates.
        seed: of the subsets.
        advance: called after each budget.

    Raises:
        InputError: a budget does not pay for one candidate, budgets do not rise, a step was not recorded, or no
            prices are given and none came with the rewards.

    Example:
        >>> from ttsnap import load_tensor, simulate
        >>> result = simulate(load_tensor("lab", "lab-noise-aware"), "lab", "2x:8x:2x", resamples=5)
        >>> curve = result.curves[0]
        >>> curve.values.shape, bool(curve.values.mean() > curve.best_of_n.mean())
        ((24, 4), True)
        >>> print(result)
        lab-noise-aware: gain over best-of-N ...
    """
    group = _tensors(tensor)
    prices = prices or known_prices(group[0])
    calls = group[0].calls
    finished = finished_cost(prices, calls)
    pruning = load_schedule(schedule)
    budgets = default_budgets(group[0], prices) if budgets is None else budgets
    curves = budget_curves(
        group,
        lambda budget: pruning.resolve(calls, equivalent=budget / finished),
        read_budgets(budgets, prices, calls),
        prices=prices,
        accounting=accounting,
        resamples=resamples,
        seed=seed,
        combine=combine,
        advance=advance,
    )
    return Simulation(tuple(curves), tuple(group), finished, isinstance(budgets, str) and "x" in budgets)


def tensor_notes(tensor: RewardTensor) -> list[str]:
    """Sentences on what recorded rewards lack: scores that are missing, candidates that are recorded again."""
    notes = []
    if tensor.missing:
        notes.append(f"{tensor.name}: {tensor.missing} scores are missing; such candidates never win.")
    if tensor.repeated:
        pool = tensor.final.shape[1]
        notes.append(
            f"{tensor.name}: {pool - tensor.repeated} of {pool} candidates are distinct, the others repeat them "
            "score for score; a larger search draws more repeats, so that gains over best-of-N are understated."
        )
    return notes


def default_budgets(tensor: RewardTensor, prices: Prices) -> str:
    """The published budgets for the published prices, else the cost of 2 to 20 finished candidates."""
    return "400:4000:200" if prices == PUBLISHED_PRICES else f"2x:{min(20, tensor.final.shape[1])}x:1x"


def _tensors(tensor: RewardTensor | Sequence[RewardTensor] | str | Path) -> list[RewardTensor]:
    if isinstance(tensor, str | Path):
        return [load_tensor(tensor)]
    group = [tensor] if isinstance(tensor, RewardTensor) else list(tensor)
    if not group:
        raise InputError("There are no rewards to replay; give at least one.")
    return group


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _points(curve: BudgetCurve, finished: float) -> list[dict[str, Any]]:
    """Figures for each budget; means are over the prompts that have a winner at it."""
    points = []
    for b, (bought, best) in enumerate(zip(curve.allotments, curve.best_allotments, strict=True)):
        difference = float(np.nanmean(curve.values[:, b] - curve.best_of_n[:, b]))
        error = float(curve.difference_error[b])
        points.append({
            "budget": curve.budgets[b],
            "equivalent": curve.budgets[b] / finished,
            "best_of_n": {"candidates": best.candidates, "reward": _finite(np.nanmean(curve.best_of_n[:, b])),
                          "unspent": best.unspent, "capped": best.capped},
            "schedule": {"schedule": str(curve.schedules[b]), "candidates": bought.candidates,
                         "survivors": list(bought.survivors), "reward": _finite(np.nanmean(curve.values[:, b])),
                         "spent": bought.spent, "unspent": bought.unspent, "capped": bought.capped,
                         "survival": [_finite(share) for share in curve.survival[b]],
                         "regret": _finite(curve.regret[b])},
            "difference": {"mean": _finite(difference), "standard_error": _finite(error),
                           "low": _finite(difference - 1.96 * error), "high": _finite(difference + 1.96 * error)},
        })  # fmt: skip
    return points


def _report(curve: BudgetCurve, tensor: RewardTensor, finished: float) -> dict[str, Any]:
    gain = None if curve.utilisation is None else curve.utilisation._asdict()
    return {
        "name": curve.name,
        "prompts": len(curve.values),
        "prompts_without_winner": int((~np.isfinite(curve.values)).any(axis=1).sum()),
        "missing_scores": tensor.missing,
        "gain_percent": gain and {name: _finite(value) for name, value in gain.items()},
        "budgets": _points(curve, finished),
    }


def _row(point: dict[str, Any], unit: float, suffix: str) -> list[object]:
    best, pruned, difference = point["best_of_n"], point["schedule"], point["difference"]
    survives = pruned["survival"][-1]
    return [
        f"{point['budget'] / unit:g}{suffix}",
        _count(best),
        _digits(best["reward"]),
        _count(pruned),
        pruned["schedule"] or "best-of-N",
        _digits(pruned["reward"]),
        _digits(difference["mean"], "+"),
        None if difference["low"] is None else f"{difference['low']:+.4f} to {difference['high']:+.4f}",
        None if survives is None else f"{100 * survives:.0f} %",
        f"{pruned['unspent'] / unit:.3g}{suffix}",
    ]


def _count(side: dict[str, Any]) -> str:
    return f"{side['candidates']}{'*' if side['capped'] else ''}"


def _digits(value: float | None, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.4f}"
