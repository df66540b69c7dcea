"""What a search strategy is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from diffkit.errors import ScoringError
from diffkit.rewards.base import Reward
from ttsnap.search.guarding import too_few
from ttsnap.search.session import Engine, Winner

__all__ = ["Plain", "Strategy", "check_winners"]


class Strategy(Protocol):
    """A way to find good images with a fixed number of candidates or within a limit.

    How many candidates a limit buys is the business of :func:`ttsnap.search.budget.affordable`, which also returns the
    user's number where it is fixed.

    One that has a true attribute ``timed`` plans by ``affordable`` alone, and takes budgets in seconds too.

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
            limit: what each prompt may cost, or on the mean over the prompts where they share it, in the unit of
                ``engine.prices`` (FLOP unless it is ``timed``); never overrun. Infinite where
                ``engine.num_candidates`` fixes the number of candidates.

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


def check_winners(engine: Engine, winners: Sequence[Sequence[Winner]]) -> None:
    """Whether each prompt of a search that is at its end has as many winners as are asked for.

    Raises:
        ScoringError: one has fewer, because too few of its candidates could be scored.
    """
    for prompt, best in enumerate(winners):
        if len(best) < engine.winners:
            raise ScoringError(_too_few(engine, prompt))


def _too_few(engine: Engine, prompt: int) -> str:
    """The sentence for a prompt with too few winners, of the candidates that came furthest."""
    looks = [look for look in engine.trace if look.prompt == prompt]
    step = max(look.step for look in looks)
    last = [look for look in looks if look.step == step]
    scores = {index: score for look in last for index, score in zip(look.candidates, look.scores, strict=True)}
    missing = {index for index, score in scores.items() if score is None}
    reasons = {index: reason for look in last for index, reason in look.reasons.items() if index in missing}
    return too_few(prompt, step, len(scores) - len(missing), len(scores), engine.winners, reasons)
