"""Lookahead search: many short drafts are judged by how they will end, and the best few are finished.

A look scores the estimate x0 of a step, and early estimates say little of the finished image. Here each candidate is
looked ahead of by a few big steps of the same denoiser (:mod:`diffkit.lookahead`), and the image that they lead to is
scored by the plain reward: no reward has to be taught. Candidates that go on do so from where they were, so that a
winner is still the stock pipeline's image of its seed. Flash-BoN (2026) finishes the best of many drafts likewise, but
drafts by caches and layer skipping.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffkit.errors import InputError
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.base import Strategy
from ttsnap.search.strategies.pruning import Pruning

__all__ = ["LookaheadSearch", "drafts", "lookahead"]

SHARES = (0.06, 0.12, 0.25, 0.5)  # the first leaves about four fifths of a budget to the drafts
AHEAD = 3  # calls; a fourth adds little, two rank markedly worse


def drafts(calls: int, *, share: float = SHARES[0], blind: Sequence[int] = ()) -> PruningSchedule:
    """One look after a tenth of the calls, ahead by three more; a draft takes at most half of the calls.

    Where so few calls are not enough for that it is best-of-N.

    Args:
        calls: T, denoiser calls of one finished candidate.
        share: of the candidates to finish.
        blind: steps after which there is no look, see :class:`diffkit.segments.Plan`.

    Example:
        >>> str(drafts(20)), str(drafts(50)), str(drafts(4)), str(drafts(2))
        ('1:0.06+3', '4:0.06+3', '0:0.06+1', '')
    """
    before = max(1, round(calls / 10), *(step + 2 for step in blind))
    ahead = min(AHEAD, calls // 2 - before)
    return PruningSchedule((before - 1,), (share,), lookahead=(ahead,)) if ahead > 0 else PruningSchedule()


@dataclass(frozen=True)
class LookaheadSearch:
    """Prune once, by the plain reward of images that lie a few big steps ahead.

    Attributes:
        schedule: when to look and how far ahead; None is :func:`drafts`, with the smallest share that leaves as many
            candidates as images are asked for.
    """

    schedule: PruningSchedule | None = None
    name: str = "lookahead"
    timed: bool = True

    def check(self, engine: Engine) -> None:
        """Refuse a schedule that does not fit.

        Raises:
            InputError: see there.
        """
        self._pruning(self.schedule or drafts(engine.plan.calls, blind=engine.plan.blind)).check(engine)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Draft as many candidates as ``limit`` pays for, and finish the best."""
        schedule = self._default(engine, limit) if self.schedule is None else self.schedule
        return self._pruning(schedule).run(engine, limit)

    def _pruning(self, schedule: PruningSchedule) -> Pruning:
        return Pruning(self.name, schedule, "plain")

    def _default(self, engine: Engine, limit: float) -> PruningSchedule:
        """Drafts, or best-of-N where the limit does not pay for drafts and the winners."""
        for share in SHARES:
            schedule = drafts(engine.plan.calls, share=share, blind=engine.plan.blind)
            try:
                affordable(engine, limit, schedule, at_least=engine.winners)
            except InputError:
                continue
            return schedule
        return PruningSchedule()


def lookahead(schedule: PruningSchedule | None = None) -> Strategy:
    """Finish the best of many drafts.

    Args:
        schedule: one that looks ahead; the search's own when None.

    Raises:
        InputError: the schedule does not look ahead.
    """
    if schedule is not None and schedule.steps and not schedule.looks_ahead:
        raise InputError(
            f"The search 'lookahead' needs a schedule that looks ahead, such as 1:0.06+3, got {str(schedule)!r}; with "
            f"schedule='' it takes its own."
        )
    return LookaheadSearch(schedule)
