"""Lookahead search: many short drafts are judged by how they will end, and the best few are finished.

A look scores the estimate x0 of a step, and early estimates say little of the finished image. Here each candidate is
looked ahead of by a few big steps of the same denoiser (:mod:`diffkit.lookahead`), and the image that they lead to is
scored by the plain reward: no reward has to be taught. Candidates that go on do so from where they were, so that a
winner is still the stock pipeline's image of its seed. Flash-BoN (2026) finishes the best of many drafts likewise, but
drafts by caches and layer skipping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffkit.errors import InputError
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable, most_within, planned_cost
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.strategies.pruning import Pruning

__all__ = ["LookaheadSearch", "drafts", "lookahead"]


def drafts(calls: int, candidates: int, *, finished: int = 1, blind: Sequence[int] = ()) -> PruningSchedule:
    """After a twentieth of the calls a look ahead by three, which keeps half the square root of the candidates.

    A draft takes at most half of the calls; where that leaves nothing to look ahead by, it is best-of-N.

    Args:
        calls: T, denoiser calls of one finished candidate.
        candidates: drafts.
        finished: how many to keep at least.
        blind: steps after which there is no look, see :class:`diffkit.step_plan.Plan`.

    Example:
        >>> str(drafts(20, 56)), str(drafts(50, 56)), str(drafts(4, 5)), str(drafts(2, 5))
        ('0:0.0714+3', '1:0.0714+3', '0:0.2+1', '')
    """
    behind = max(1, round(calls / 20), *(step + 2 for step in blind))
    ahead = min(3, calls // 2 - behind)
    if ahead < 1:
        return PruningSchedule()
    kept = min(candidates, max(finished, 1, math.floor(math.sqrt(candidates) / 2 + 0.5)))
    return PruningSchedule((behind - 1,), (round(kept / candidates, 4),), lookahead=(ahead,))


@dataclass(frozen=True)
class LookaheadSearch:
    """Prune by the plain reward of images that lie a few big steps ahead.

    Attributes:
        schedule: when to look and how far ahead; None is :func:`drafts`, or best-of-N where that finishes as many.
            Looks that are not ahead score with the noise level where the reward knows it.
    """

    schedule: PruningSchedule | None = None
    name: str = "lookahead"
    timed: bool = True

    def check(self, engine: Engine) -> None:
        """Refuse a schedule that does not fit.

        Raises:
            InputError: see there.
        """
        self._pruning(self.schedule or self._drafts(engine, engine.num_candidates or 2)).check(engine)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Draft as many candidates as ``limit`` pays for, and finish the best."""
        schedule = self._default(engine, limit) if self.schedule is None else self.schedule
        return self._pruning(schedule).run(engine, limit)

    def _pruning(self, schedule: PruningSchedule) -> Pruning:
        return Pruning(self.name, schedule, "either")

    def _drafts(self, engine: Engine, candidates: int) -> PruningSchedule:
        return drafts(engine.plan.calls, candidates, finished=engine.winners, blind=engine.plan.blind)

    def _default(self, engine: Engine, limit: float) -> PruningSchedule:
        """Drafts, or best-of-N where the limit pays for no more drafts than finished candidates."""
        if engine.num_candidates is not None:
            return self._drafts(engine, engine.num_candidates)
        whole = affordable(engine, limit, PruningSchedule(), at_least=engine.winners)
        if planned_cost(engine, self._drafts(engine, whole + 1), whole + 1) > limit:
            return PruningSchedule()
        return self._drafts(engine, most_within(limit, lambda n: planned_cost(engine, self._drafts(engine, n), n)))


def lookahead(schedule: PruningSchedule | None = None) -> Strategy:
    """Finish the best of many drafts.

    Args:
        schedule: one that looks ahead; the search's own when None.

    Raises:
        InputError: the schedule does not look ahead.
    """
    if schedule is not None and schedule.steps and not schedule.looks_ahead:
        raise InputError(
            f"The search 'lookahead' needs a schedule that looks ahead, such as 0:0.07+3, got {str(schedule)!r}; with "
            f"schedule='' it takes its own."
        )
    return LookaheadSearch(schedule)
