"""Schedules that were learned from recorded rewards: one for each budget, and what they are expected to give."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from diffkit.console import format_table
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["HEADERS", "SCHEMA", "Entry", "Expected", "FittedSchedule"]

SCHEMA = 1
HEADERS = ("budget", "best-of", "candidates", "schedule", "best-of-N", "reward", "difference", "95 % interval")


class Entry(NamedTuple):
    """The schedule for one budget.

    Attributes:
        budget: in the unit of the prices it was fitted with.
        equivalent: the same as a number of finished candidates, the N of the best-of-N that costs as much.
        candidates: how many candidates it starts with at that budget.
        schedule: when to look and what share to keep.
    """

    budget: float
    equivalent: float
    candidates: int
    schedule: PruningSchedule


class Expected(NamedTuple):
    """Mean reward at one budget on prompts that the schedule was not fitted on, with the 95 % interval over prompts of
    its difference to best-of-N at the same budget."""

    budget: float
    best_of_n: float
    reward: float
    low: float
    high: float


@dataclass(frozen=True)
class FittedSchedule(PruningSchedule):
    """A schedule that changes with the budget; its own ``steps`` and ``keep`` are those of the middle budget.

    Attributes:
        entries: one for each budget, rising; empty for best-of-N.
        calls: denoiser calls of one finished candidate where it was fitted.
        expected: one for each budget, of the search over schedules, by cross-validation over prompts.
        gain: area between the reward-against-budget curves of schedule and best-of-N, over best-of-N's own, in %, on
            held-out prompts; at one budget the excess over one candidate's mean instead. None when undefined.
        low, high: 95 % interval of ``gain`` over prompts.
        reason: why it is best-of-N; empty when it is not.
        info: where it comes from: data, prompts, prices, seed, folds.
    """

    entries: tuple[Entry, ...] = ()
    calls: int = 0
    expected: tuple[Expected, ...] = ()
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    info: Mapping[str, object] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.steps, self.keep, self.entries, self.calls))

    @property
    def looks_ahead(self) -> bool:
        """Whether any look of any budget does."""
        return any(schedule.lookahead for schedule in (self, *(entry.schedule for entry in self.entries)))

    def resolve(self, calls: int, *, equivalent: float | None = None, candidates: int | None = None) -> PruningSchedule:
        """The schedule for a budget or a number of candidates, for a denoising of ``calls`` calls.

        The entry is the nearest one by ratio, of budgets in best-of-N equivalents or of candidates (the cheaper on a
        tie). With another number of calls, each look keeps its share of the denoising: after s + 1 of T calls becomes
        after ``round((s + 1) calls / T)``; looks that fall together or on the last call are dropped or merged. A
        lookahead keeps its calls, as far as so many are left.
        """
        chosen = PruningSchedule(self.steps, self.keep, lookahead=self.lookahead)
        if self.entries and equivalent is not None:
            chosen = min(self.entries, key=lambda entry: abs(math.log(entry.equivalent / equivalent))).schedule
        elif self.entries and candidates is not None:
            chosen = min(self.entries, key=lambda entry: abs(math.log(entry.candidates / candidates))).schedule
        return chosen if calls == self.calls or not self.calls else _stretched(chosen, self.calls, calls)

    def at_budget(self, budget: float) -> PruningSchedule:
        """The schedule for a budget in the unit of its prices; the nearest entry by ratio."""
        if not self.entries:
            return PruningSchedule(self.steps, self.keep, lookahead=self.lookahead)
        return min(self.entries, key=lambda entry: abs(math.log(entry.budget / budget))).schedule

    def table(self) -> list[list[object]]:
        """Rows under ``HEADERS``, one for each budget: the schedule, and its reward on held-out prompts."""
        entries = {entry.budget: entry for entry in self.entries}
        rows: list[list[object]] = []
        for expected in self.expected:
            entry = entries.get(expected.budget)
            chosen: list[object] = [None, None, "best-of-N"]
            if entry is not None:
                chosen = [f"{entry.equivalent:.1f}", entry.candidates, str(entry.schedule) or "best-of-N"]
            rows.append([f"{expected.budget:g}", *chosen, f"{expected.best_of_n:.4f}", f"{expected.reward:.4f}",
                         f"{expected.reward - expected.best_of_n:+.4f}",
                         f"{expected.low:+.4f} to {expected.high:+.4f}"])  # fmt: skip
        return rows

    def conclusion(self) -> str:
        """One sentence: the gain over best-of-N on held-out prompts, or why this is best-of-N."""
        if self.reason or self.gain is None:
            return self.reason
        return (
            f"Gain over best-of-N on held-out prompts: {self.gain:.1f} % "
            f"(95 % interval {self.low:.1f} to {self.high:.1f})."
        )

    def __repr__(self) -> str:
        """The table and the conclusion."""
        return "\n".join([format_table(HEADERS, self.table()), self.conclusion()])

    def to_json(self) -> str:
        """The content of a file that :func:`ttsnap.schedules.load.load_schedule` reads."""
        return json.dumps({
            "schema": SCHEMA, "kind": "ttsnap-schedule", **self.written(),
            "calls": self.calls, "gain": self.gain, "low": self.low, "high": self.high, "reason": self.reason,
            "info": dict(self.info),
            "entries": [
                {"budget": entry.budget, "equivalent": entry.equivalent, "candidates": entry.candidates,
                 **entry.schedule.written()} for entry in self.entries
            ],
            "expected": [expected._asdict() for expected in self.expected],
        }, indent=1, allow_nan=False)  # fmt: skip


def _stretched(schedule: PruningSchedule, old: int, new: int) -> PruningSchedule:
    shares: dict[int, float] = {}
    ahead: dict[int, int] = {}
    for step, share, calls in zip(schedule.steps, schedule.keep, schedule.calls_ahead, strict=True):
        moved = max(1, math.floor((step + 1) * new / old + 0.5)) - 1
        if moved < new - 1:
            shares[moved] = shares.get(moved, 1.0) * share
            ahead[moved] = max(ahead.get(moved, 0), min(calls, new - moved - 1))
    return PruningSchedule(tuple(shares), tuple(shares.values()), lookahead=tuple(ahead.values()))
