"""Pruning at fixed steps to fixed fractions: TTSnap with a reward that knows noise, TTSp with one that does not.

TTSnap (arXiv 2511.22242): all candidates are denoised to the first look, the estimates x0 are scored, the best go on.
Best-of-N is the same without looks. It is also what a call without a named search does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from diffkit.errors import InputError
from diffkit.rewards.base import EstimateReward
from diffkit.segments import Candidate
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable, planned_cost, resolved
from ttsnap.search.reserves import Reserves
from ttsnap.search.selection import top_k
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import Plain, Strategy

__all__ = ["PUBLISHED", "Pruning", "best_of_n", "prune", "ttsnap", "ttsp"]

PUBLISHED = PruningSchedule((2, 6, 11), (0.4, 0.4, 0.5))


def prune(
    engine: Engine,
    schedule: PruningSchedule,
    candidates: Sequence[Candidate],
    *,
    limit: float = math.inf,
    reserves: Reserves | None = None,
    needed: int | None = None,
) -> list[list[Winner]]:
    """Winners of each prompt that has candidates, best first; all that have some have the same number.

    Where the safety checker flags winners, dropped candidates are finished in their place.

    Args:
        limit: of each prompt, in the unit of ``engine.prices``; infinite where there is none.
        reserves: of earlier calls, with a limit of their own; None = those of this call.
        needed: how many candidates of a prompt must have a score at each look; None = as many as are asked for. With 0
            a prompt that has none is left out of the winners.

    Raises:
        ScoringError: too few candidates of a prompt could be scored.
    """
    needed = engine.winners if needed is None else needed
    n = len(candidates) // len({candidate.prompt for candidate in candidates})
    stages = schedule.stages(n, engine.plan.calls)
    alive = list(candidates)
    if reserves is None:
        reserves = Reserves(engine, limit if math.isinf(limit) else limit - planned_cost(engine, schedule, n))
    for stage, target in zip(stages[:-1], schedule.survivors(n), strict=True):
        alive = engine.denoise(alive, stage.start, stage.stop)
        look = engine.estimate(alive, lookahead=stage.lookahead)
        passed: list[Candidate] = []
        for prompt in sorted({candidate.prompt for candidate in alive}):
            rows = engine.rows(alive, prompt)
            scores = [look.scores[row] for row in rows]
            kept = top_k(scores, target, higher_is_better=engine.reward.higher_is_better)
            survivors = [alive[rows[position]] for position in kept]
            engine.record(prompt, alive, look, survivors, needed=needed)
            reserves.keep(prompt, alive, look, survivors)
            passed += survivors
        alive = passed
        if not alive:
            return []
    done = engine.denoise(alive, stages[-1].start, stages[-1].stop)
    return engine.finish(*reserves.replace_flagged(done, engine.judge(done)), needed=needed)


@dataclass(frozen=True)
class Pruning:
    """Prune by a schedule.

    Attributes:
        estimates: how estimates are scored. ``noise-aware``: by a reward that knows noise levels, others are refused;
            ``plain``: as if they were finished images; ``either``: with their noise level where the reward knows it.
    """

    name: str
    schedule: PruningSchedule
    estimates: Literal["noise-aware", "plain", "either"] = "noise-aware"

    def check(self, engine: Engine) -> None:
        """Refuse a schedule that does not fit, or a reward that does not know noise levels.

        Raises:
            InputError: see there.
        """
        schedule = self.schedule.resolve(engine.plan.calls)
        schedule.validate(engine.plan.calls)
        engine.plan.check_looks(schedule.steps)
        if (
            self.estimates == "noise-aware"
            and 0 in self.schedule.calls_ahead
            and not isinstance(engine.reward, EstimateReward)
        ):
            raise InputError(
                f"{self.name} needs a reward that knows noise levels, and {engine.reward.name!r} does not; give a "
                f"noise-aware one, or use ttsp, which judges estimates like finished images."
            )

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Prune the user's number of candidates, or as many as ``limit`` pays for."""
        if self.estimates == "plain":
            engine = replace(engine, reward=Plain(engine.reward))
        schedule = resolved(engine, limit, self.schedule)
        engine.notes["schedule"] = str(schedule)
        n, prompts = affordable(engine, limit, schedule, at_least=engine.winners), len(engine.prompts)
        engine.expect(schedule.cost(n, engine.plan.calls).calls * prompts)
        if engine.ledger.budget is not None:
            engine.ledger.budget["planned"] = planned_cost(engine, schedule, n) * prompts
        return prune(engine, schedule, engine.noise.candidates(prompts, n), limit=limit)


def best_of_n(schedule: PruningSchedule | None = None) -> Strategy:
    """Denoise every candidate to the end."""
    return Pruning("best-of-n", PruningSchedule(), "plain")


def ttsp(schedule: PruningSchedule | None = None) -> Strategy:
    """Prune by the plain reward of the estimates."""
    return Pruning("ttsp", schedule or PUBLISHED, "plain")


def ttsnap(schedule: PruningSchedule | None = None) -> Strategy:
    """Prune by a reward that knows noise levels."""
    return Pruning("ttsnap", schedule or PUBLISHED, "noise-aware")
