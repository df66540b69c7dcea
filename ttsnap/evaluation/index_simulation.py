"""The index rule in the tables of ``simulate``: what it gains, and what all prompts cost together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffkit.ledger import Prices
from ttsnap.evaluation.budget_curves import GainCurve, finished_cost
from ttsnap.evaluation.index_curves import IndexCurve, Spend, index_curve
from ttsnap.evaluation.simulation import Simulation, compared, interval
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook

__all__ = ["IndexSimulation", "simulate_index"]


@dataclass(frozen=True, eq=False, repr=False)
class IndexSimulation(Simulation):
    """Reward against mean budget of the index rule; printed, it is a table for each reward."""

    headers: ClassVar[Sequence[str]] = (
        "budget", "best-of", "reward", "rule", "begun", "reward", "difference", "95 % interval", "most of a prompt",
        "total cost", "of the total budget",
    )  # fmt: skip

    def points(self, curve: GainCurve) -> list[dict[str, Any]]:
        """Figures for each budget of a curve, as JSON types."""
        return _points(curve, self.finished) if isinstance(curve, IndexCurve) else []

    def table(self, curve: GainCurve) -> list[list[object]]:
        """Rows under ``headers``, one for each budget of a curve."""
        return [_row(point, *self.unit) for point in self.points(curve)]

    def title(self, curve: GainCurve) -> str:
        """The name of the reward and its gain over best-of-N, which is no fair one where a budget was overrun."""
        overrun = isinstance(curve, IndexCurve) and curve.overrun.any()
        return super().title(curve) + (", not at equal cost" if overrun else "")

    def notes(self, curve: GainCurve) -> list[str]:
        """Those of every simulation, and a sentence on budgets that were overrun."""
        notes = super().notes(curve)
        if isinstance(curve, IndexCurve) and curve.overrun.any():
            unit, suffix = self.unit
            over = ", ".join(
                f"{100 * (share - 1):.1f} % at {budget / unit:g}{suffix}"
                for budget, share in zip(curve.budgets, curve.spent_shares, strict=True)
                if share > 1
            )
            notes.append(
                f"{curve.name}: the rule spent more than the budget in all, {over}; there it is not compared at equal "
                "cost."
            )
        return notes


def simulate_index(
    tensors: Sequence[RewardTensor],
    book: IndexBook,
    budgets: Sequence[float],
    *,
    prices: Prices,
    in_finished: bool = False,
    spend: Spend = "total",
    resamples: int = 50,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> IndexSimulation:
    """Replay an index rule on each reward; see :func:`ttsnap.evaluation.index_curves.index_curve`.

    Args:
        in_finished: whether the table counts budgets in finished candidates.
        spend: ``total`` or ``mean``, see :mod:`ttsnap.evaluation.index_curves`.
        advance: called after each budget of the first reward.

    Raises:
        InputError: as ``index_curve``.
    """
    curves = tuple(
        index_curve(tensor, book, budgets, prices=prices, spend=spend, resamples=resamples, seed=seed,
                    advance=advance if tensor is tensors[0] else lambda: None)
        for tensor in tensors
    )  # fmt: skip
    return IndexSimulation(curves, tuple(tensors), finished_cost(prices, tensors[0].calls), in_finished)


def _points(curve: IndexCurve, finished: float) -> list[dict[str, Any]]:
    points = []
    for b, point in enumerate(compared(curve, finished)):
        total = float(curve.totals[b].mean())
        point["index"] = {
            "rule": curve.rules[b], "reward": float(np.nanmean(curve.values[:, b])), "begun": float(curve.opened[b]),
            "exhausted": bool(curve.exhausted[b]), "spent": total / len(curve.values),
            "largest": float(curve.largest[b]), "total": total, "total_budget": curve.budgets[b] * len(curve.values),
            "spent_share": float(curve.spent_shares[b]), "overrun": bool(curve.overrun[b]),
        }  # fmt: skip
        points.append(point)
    return points


def _row(point: dict[str, Any], unit: float, suffix: str) -> list[object]:
    best, index, difference = point["best_of_n"], point["index"], point["difference"]
    return [
        f"{point['budget'] / unit:g}{suffix}",
        f"{best['candidates']}{'*' if best['capped'] else ''}",
        f"{best['reward']:.4f}",
        index["rule"] or "best-of-N",
        f"{index['begun']:.1f}{'*' if index['exhausted'] else ''}",
        f"{index['reward']:.4f}",
        f"{difference['mean']:+.4f}",
        interval(difference),
        f"{index['largest'] / unit:.4g}{suffix}",
        f"{index['total'] / unit:.4g}{suffix}",
        f"{100 * index['spent_share']:.1f} %{' (overrun)' if index['overrun'] else ''}",
    ]
