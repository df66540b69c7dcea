"""Search in rounds, each on fresh seeds, and stop a prompt's search as soon as its winner is good enough.

Where rewards have a ceiling ("everything in the caption holds"), most prompts reach it long before the budget is spent,
and a few need all of it; a fixed number of candidates spends the same on both. The budget is the most a prompt may
cost: what an early stop leaves is not spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from diffkit.errors import InputError, ScoringError
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable, resolved
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.pruning import prune, ttsnap

__all__ = ["Rounds"]


@dataclass(frozen=True)
class Rounds:
    """Prune by a schedule in up to ``rounds`` equal parts of the budget.

    Args:
        enough: the reward, in its own unit, at which a prompt needs no better image; all images asked for must reach
            it.
        rounds: at most so many.
        schedule: of each round, at its share of the budget, as :func:`ttsnap.schedules.load.load_schedule` reads
            it; without looks every round is best-of-N.

    Raises:
        InputError: ``enough`` is not finite, there is no round, or no such schedule.

    Example:
        >>> search = Rounds(0.97, rounds=4, schedule="lab-trio")  # pipe(prompt, budget="64x", search=search)
        >>> search.name, search.enough, search.rounds
        ('rounds', 0.97, 4)
    """

    enough: float
    rounds: int = 4
    schedule: PruningSchedule | str | Path | None = None
    name: str = "rounds"

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not math.isfinite(self.enough):
            raise InputError(f"enough is a reward at which to stop, got {self.enough}.")
        load_schedule(self.schedule)
        if self.rounds < 1:
            raise InputError(f"A search has at least one round, got {self.rounds}.")

    def check(self, engine: Engine) -> None:
        """Refuse a schedule that does not fit, or a reward that does not know noise levels.

        Raises:
            InputError: see there.
        """
        ttsnap(load_schedule(self.schedule)).check(engine)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Round after round; ``engine.notes["rounds"]`` tells how many each prompt took.

        Raises:
            ScoringError: too few candidates could be scored before each prompt had its winners.
        """
        share = limit / self.rounds
        schedule = resolved(engine, share, load_schedule(self.schedule))
        engine.notes["schedule"] = str(schedule)
        n = affordable(engine, share, schedule, at_least=engine.winners)
        fresh = engine.noise.candidates(len(engine.prompts), n * self.rounds)
        winners: list[list[Winner]] = [[] for _ in engine.prompts]
        taken = [0] * len(winners)
        for turn in range(self.rounds):
            batch = [
                candidate
                for candidate in fresh
                if candidate.index // n == turn and not self._satisfied(engine, winners[candidate.prompt])
            ]
            if not batch:
                break
            try:
                round_of_winners = prune(engine, schedule, batch, limit=share)
            except ScoringError:
                if not all(winners):
                    raise
                break  # the winners of the earlier rounds stay
            for latest in round_of_winners:
                prompt = latest[0].candidate.prompt
                taken[prompt] += 1
                winners[prompt] = engine.best(winners[prompt] + latest)
        engine.notes["rounds"] = taken
        return winners

    def _satisfied(self, engine: Engine, winners: list[Winner]) -> bool:
        sign = 1.0 if engine.reward.higher_is_better else -1.0
        good = [not winner.flagged and sign * winner.score >= sign * self.enough for winner in winners]
        return bool(winners) and all(good)
