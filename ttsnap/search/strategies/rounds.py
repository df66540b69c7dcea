"""Search in rounds, each on fresh seeds, and stop a prompt's search as soon as its winner is good enough.

Where rewards have a ceiling ("everything in the caption holds"), most prompts reach it long before the budget is spent,
and a few need all of it; a fixed number of candidates spends the same on both. The budget is the most a prompt may
cost: what an early stop leaves is not spent.

A prompt of which a round scores nothing goes on with the next one, on other seeds, and so do the prompts beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from diffkit.errors import InputError
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable, finished_cost, planned_cost, resolved
from ttsnap.search.reserves import Reserves
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import check_winners
from ttsnap.search.strategies.pruning import prune, ttsnap

__all__ = ["Rounds"]


@dataclass(frozen=True)
class Rounds:
    """Prune by a schedule in up to ``rounds`` parts of the budget.

    The parts are equal, but what the whole candidates of a round leave of theirs goes to the later rounds. Where so
    many parts would not pay for a winner each, there are fewer rounds.

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
        """Round after round; ``engine.notes["rounds"]`` tells how many gave each prompt an image with a score.

        Raises:
            InputError: the limit does not pay for one round.
            ScoringError: after all rounds a prompt has fewer scored images than asked for.
        """
        rounds = self._paid_rounds(engine, limit)
        schedule = resolved(engine, limit / rounds, load_schedule(self.schedule))
        engine.notes["schedule"] = str(schedule)
        sizes, spare = _sizes(engine, limit, schedule, rounds)
        fresh = engine.noise.candidates(len(engine.prompts), sum(sizes))
        reserves = Reserves(engine, spare)
        winners: list[list[Winner]] = [[] for _ in engine.prompts]
        taken = [0] * len(winners)
        for first, end in pairwise([sum(sizes[:turn]) for turn in range(rounds + 1)]):
            batch = [
                candidate
                for candidate in fresh
                if first <= candidate.index < end and not self._satisfied(engine, winners[candidate.prompt])
            ]
            if not batch:
                break
            for latest in prune(engine, schedule, batch, reserves=reserves, needed=0):
                prompt = latest[0].candidate.prompt
                taken[prompt] += 1
                winners[prompt] = engine.best(winners[prompt] + latest)
        engine.notes["rounds"] = taken
        check_winners(engine, winners)
        return winners

    def _paid_rounds(self, engine: Engine, limit: float) -> int:
        """The most rounds, at least one, of which each can be paid: the winners asked for reach its end."""
        rounds = int(max(1, min(self.rounds, limit / (engine.winners * finished_cost(engine)))))
        while rounds > 1 and not self._pays(engine, limit / rounds):
            rounds -= 1
        return rounds

    def _pays(self, engine: Engine, share: float) -> bool:
        """Whether a share of the limit pays for a round."""
        schedule = resolved(engine, share, load_schedule(self.schedule))
        if planned_cost(engine, schedule, 1) > share:
            return False
        n = affordable(engine, share, schedule)
        return [n, *schedule.survivors(n)][-1] >= engine.winners

    def _satisfied(self, engine: Engine, winners: list[Winner]) -> bool:
        sign = 1.0 if engine.reward.higher_is_better else -1.0
        good = [not winner.flagged and sign * winner.score >= sign * self.enough for winner in winners]
        return len(winners) == engine.winners and all(good)


def _sizes(engine: Engine, limit: float, schedule: PruningSchedule, rounds: int) -> tuple[list[int], float]:
    """How many candidates each round starts with, and what they leave of the limit.

    Raises:
        InputError: the limit does not pay for one round.
    """
    sizes: list[int] = []
    left = limit
    for remaining in range(rounds, 0, -1):
        share = max(limit / rounds, left / remaining)  # equal parts, whatever the rounding of floats
        sizes.append(affordable(engine, share, schedule, at_least=engine.winners))
        left -= planned_cost(engine, schedule, sizes[-1])
    return sizes, left
