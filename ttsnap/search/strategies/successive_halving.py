"""Successive halving: half of the candidates go on at every look, and every stretch between looks costs about the same.

Karnin et al. 2013, Jamieson and Talwalkar 2016 (arXiv 1502.07943). Here a candidate's denoising is what is being
bought piece by piece: looks come after T/2, T/4, T/8, ... denoiser calls, and their number follows from the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffkit.errors import InputError
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.strategies.pruning import prune

__all__ = ["Halving", "halving", "halving_schedule"]


def halving_schedule(looks: int, calls: int) -> PruningSchedule:
    """Looks after calls/2^looks, ..., calls/4, calls/2 denoiser calls, half kept each time; equal steps are merged.

    Example:
        >>> str(halving_schedule(3, 20))
        '1:0.5,4:0.5,9:0.5'
    """
    after = {max(1, calls // 2**level) for level in range(1, looks + 1)}
    steps = tuple(sorted(count - 1 for count in after if count < calls))
    return PruningSchedule(steps, (0.5,) * len(steps))


@dataclass(frozen=True)
class Halving:
    """Halve until about one candidate of each prompt is left."""

    name: str = "halving"

    def check(self, engine: Engine) -> None:
        """Any pipeline and reward will do."""

    def schedule(self, engine: Engine, limit: float) -> tuple[PruningSchedule, int]:
        """The most looks for which at least the winners are left, and the number of candidates."""
        best: tuple[PruningSchedule, int] | None = None
        for looks in range(int(math.log2(engine.plan.calls)) + 1):
            schedule = halving_schedule(looks, engine.plan.calls)
            if schedule.steps and (engine.plan.uncut or set(schedule.steps) & set(engine.plan.blind)):
                break
            try:
                n = affordable(engine, limit, schedule, at_least=engine.winners)
            except InputError:
                if best is None:
                    raise
                break
            if n < 2 ** len(schedule.steps) * engine.winners:
                break
            best = schedule, n
        return best if best is not None else (PruningSchedule(), n)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Halve."""
        schedule, n = self.schedule(engine, limit)
        engine.notes["schedule"] = str(schedule)
        return prune(engine, schedule, engine.noise.candidates(len(engine.prompts), n), limit=limit)


def halving(schedule: PruningSchedule | None = None) -> Strategy:
    """Successive halving; its schedule follows from the budget."""
    return Halving()
