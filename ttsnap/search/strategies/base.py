"""What a search strategy is, and how it plans: whole numbers of candidates whose exact cost stays inside a limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from diffkit.errors import InputError
from diffkit.flops import Cost, Prices
from diffkit.rewards.base import Reward
from ttsnap.schedules.pruning_schedule import PruningSchedule, candidates_for
from ttsnap.search.session import Engine, Winner

__all__ = ["Plain", "Strategy", "affordable_count", "priced", "resolved"]


class Strategy(Protocol):
    """A way to spend a budget on finding good images.

    Attributes:
        name: how records call it.
    """

    @property
    def name(self) -> str:
        """See above."""
        ...

    def check(self, engine: Engine) -> None:
        """Whether it can work with this pipeline, reward and number of steps; nothing is computed.

        Raises:
            InputError: it cannot; the message says why and what to do.
        """
        ...

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Winners of each prompt, best first.

        Looks are recorded in ``engine.trace``, the cost in ``engine.ledger`` and, for each prompt, ``engine.spent``.

        Args:
            limit: what each prompt may cost, in FLOP at ``engine.ledger.flops``; never overrun.

        Raises:
            InputError: the limit does not pay for one candidate.
            ScoringError: too few candidates of a prompt could be scored.
        """
        ...


class Plain:
    """A reward that treats x0 estimates like finished images, whatever it knows of noise."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.name, self.higher_is_better, self.range = reward.name, reward.higher_is_better, reward.range
        self.flops_per_image = reward.flops_per_image

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The reward's scores of finished images."""
        return self.reward.score(images, prompts)


def priced(cost: Cost, prices: Prices) -> float:
    """The cost in the unit of the prices.

    Raises:
        InputError: a price is unknown.
    """
    total = cost.at(prices)
    if total is None:
        raise InputError(
            "The FLOP of a denoiser call or a decoding could not be counted, so this budget cannot be kept; give "
            "num_candidates, or a budget in seconds."
        )
    return total


def resolved(engine: Engine, limit: float, schedule: PruningSchedule) -> PruningSchedule:
    """What the schedule is at a limit in FLOP; a fitted one changes with the budget.

    Raises:
        InputError: a price is unknown, or it does not fit the denoising.
    """
    one = priced(PruningSchedule().cost(1, engine.plan.calls), engine.ledger.flops)
    found = schedule.resolve(engine.plan.calls, equivalent=max(limit / one, 1.0))
    found.validate(engine.plan.calls)
    return found


def affordable_count(engine: Engine, limit: float, schedule: PruningSchedule, *, at_least: int = 1) -> int:
    """The most candidates for each prompt whose exact cost stays within ``limit`` FLOP.

    Args:
        at_least: how many must be left after the last look.

    Raises:
        InputError: fewer are left, or not even one candidate fits.
    """
    calls, prices, cheap = engine.plan.calls, engine.ledger.flops, engine.preview_vae is not None
    n = candidates_for(limit, lambda count: priced(schedule.cost(count, calls, preview=cheap), prices))
    left = [n, *schedule.survivors(n)][-1]
    if left < at_least:
        raise InputError(
            f"The budget pays for {n} candidates, of which {left} reach the end, fewer than the {at_least} images "
            f"asked for; raise it."
        )
    return n
