"""Reward against budget beside best-of-N as tables, notes and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from diffkit.console import format_table
from ttsnap.evaluation.budget_curves import BudgetCurve, GainCurve
from ttsnap.reward_tensor import RewardTensor

__all__ = ["Simulation", "compared", "interval", "report", "tensor_notes"]

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
        headers: of the table's columns.
    """

    curves: tuple[GainCurve, ...]
    tensors: tuple[RewardTensor, ...]
    finished: float
    in_finished: bool = False
    headers: ClassVar[Sequence[str]] = HEADERS

    def to_dict(self) -> list[dict[str, Any]]:
        """One entry for each reward with all figures, as JSON types; what is not defined is None."""
        return [
            report(curve, tensor, self.points(curve)) for curve, tensor in zip(self.curves, self.tensors, strict=True)
        ]

    @property
    def unit(self) -> tuple[float, str]:
        """What budgets are divided by in the table, and what is written behind them."""
        return (self.finished, "x") if self.in_finished else (1.0, "")

    def points(self, curve: GainCurve) -> list[dict[str, Any]]:
        """Figures for each budget of a curve, as JSON types."""
        return _points(curve, self.finished) if isinstance(curve, BudgetCurve) else []

    def table(self, curve: GainCurve) -> list[list[object]]:
        """Rows under ``headers``, one for each budget of a curve."""
        return [_row(point, *self.unit) for point in self.points(curve)]

    def title(self, curve: GainCurve) -> str:
        """The name of the reward and its gain over best-of-N."""
        name = curve.name or "reward"
        if curve.utilisation is None or math.isnan(curve.utilisation.gain):
            return name
        gain, low, high = curve.utilisation
        return f"{name}: gain over best-of-N {gain:+.1f} % (95 % interval over prompts {low:+.1f} to {high:+.1f})"

    def notes(self, curve: GainCurve) -> list[str]:
        """Sentences on missing scores, repeated candidates and budgets that pay for more than were recorded."""
        notes = tensor_notes(self.tensors[self.curves.index(curve)])
        own = curve.allotments if isinstance(curve, BudgetCurve) else ()
        if any(bought.capped for bought in (*own, *curve.best_allotments)):
            notes.append(
                f"{curve.name}: * marks budgets that pay for more candidates than were recorded; the gain is over the "
                "budgets before the first of them."
            )
        return notes

    def __repr__(self) -> str:
        """The tables with their notes."""
        return "\n".join(
            "\n".join([format_table(self.headers, self.table(curve), title=self.title(curve)), *self.notes(curve)])
            for curve in self.curves
        )


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


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def compared(curve: GainCurve, finished: float) -> list[dict[str, Any]]:
    """Best-of-N and the difference to it at each budget; means are over the prompts that have a winner at it."""
    points = []
    for b, best in enumerate(curve.best_allotments):
        difference = float(np.nanmean(curve.values[:, b] - curve.best_of_n[:, b]))
        error = float(curve.difference_error[b])
        points.append({
            "budget": curve.budgets[b],
            "equivalent": curve.budgets[b] / finished,
            "best_of_n": {"candidates": best.candidates, "reward": _finite(np.nanmean(curve.best_of_n[:, b])),
                          "unspent": best.unspent, "capped": best.capped},
            "difference": {"mean": _finite(difference), "standard_error": _finite(error),
                           "low": _finite(difference - 1.96 * error), "high": _finite(difference + 1.96 * error)},
        })  # fmt: skip
    return points


def _points(curve: BudgetCurve, finished: float) -> list[dict[str, Any]]:
    points = []
    for b, (bought, point) in enumerate(zip(curve.allotments, compared(curve, finished), strict=True)):
        point["schedule"] = {
            "schedule": str(curve.schedules[b]), "candidates": bought.candidates, "survivors": list(bought.survivors),
            "reward": _finite(np.nanmean(curve.values[:, b])), "spent": bought.spent, "unspent": bought.unspent,
            "capped": bought.capped, "survival": [_finite(share) for share in curve.survival[b]],
            "regret": _finite(curve.regret[b]),
        }  # fmt: skip
        point["difference"] = point.pop("difference")  # stands last
        points.append(point)
    return points


def report(curve: GainCurve, tensor: RewardTensor, points: list[dict[str, Any]]) -> dict[str, Any]:
    """One reward's figures as JSON types."""
    gain = None if curve.utilisation is None else curve.utilisation._asdict()
    return {
        "name": curve.name,
        "prompts": len(curve.values),
        "prompts_without_winner": int((~np.isfinite(curve.values)).any(axis=1).sum()),
        "missing_scores": tensor.missing,
        "gain_percent": gain and {name: _finite(value) for name, value in gain.items()},
        "budgets": points,
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
        interval(difference),
        None if survives is None else f"{100 * survives:.0f} %",
        f"{pruned['unspent'] / unit:.3g}{suffix}",
    ]


def interval(difference: dict[str, float | None]) -> str | None:
    """The 95 % interval as the tables write it."""
    low, high = difference["low"], difference["high"]
    return None if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _count(side: dict[str, Any]) -> str:
    return f"{side['candidates']}{'*' if side['capped'] else ''}"


def _digits(value: float | None, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.4f}"
