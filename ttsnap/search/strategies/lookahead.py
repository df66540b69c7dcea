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

SHARES = ((0.25, 0.2), (0.35, 0.35), (0.5, 0.5), (0.7, 0.7))  # the first leaves about four fifths to the drafts


def drafts(calls: int, *, shares: tuple[float, float] = SHARES[0], blind: Sequence[int] = ()) -> PruningSchedule:
    """After a tenth of the calls a look ahead by two, after three twentieths one by three, at the best of the first.

    A draft takes at most half of the calls. Where that leaves no second look, the first keeps what both would; where it
    leaves none, it is best-of-N.

    Args:
        calls: T, denoiser calls of one finished candidate.
        shares: to keep at the looks.
        blind: steps after which there is no look, see :class:`diffkit.segments.Plan`.

    Example:
        >>> str(drafts(20)), str(drafts(50)), str(drafts(4)), str(drafts(2))
        ('1:0.25+2,2:0.2+3', '4:0.25+2,7:0.2+3', '0:0.05+1', '')
    """
    before = max(1, round(calls / 10), *(step + 2 for step in blind))
    later = max(before + 1, round(3 * calls / 20))
    ahead = [min(most, calls // 2 - behind) for behind, most in ((before, 2), (later, 3))]
    if ahead[0] < 1:
        return PruningSchedule()
    if ahead[1] < 2:
        return PruningSchedule((before - 1,), (round(shares[0] * shares[1], 4),), lookahead=(ahead[0],))
    return PruningSchedule((before - 1, later - 1), shares, lookahead=tuple(ahead))


@dataclass(frozen=True)
class LookaheadSearch:
    """Prune by the plain reward of images that lie a few big steps ahead.

    Attributes:
        schedule: when to look and how far ahead; None is :func:`drafts`, with the smallest shares that leave as many
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
        for shares in SHARES:
            schedule = drafts(engine.plan.calls, shares=shares, blind=engine.plan.blind)
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
