"""Candidates that a look has dropped, kept in case the safety checker flags the images that win without them.

Only where the pipeline has a safety checker. They are finished one after the other, those that came furthest first and
the best of a look first, until no winner is flagged, nothing is left, or the budget pays for no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from diffkit.image_filters import has_safety_checker
from diffkit.ledger import Cost
from diffkit.segments import Candidate
from ttsnap.search.budget import priced
from ttsnap.search.session import Engine, Look

__all__ = ["Reserves"]


class Reserves:
    """Dropped candidates of each prompt.

    Args:
        spare: what a prompt may cost beyond its planned search, in the unit of ``engine.prices``; infinite where there
            is no budget.
    """

    def __init__(self, engine: Engine, spare: float = math.inf) -> None:
        self.engine, self.spare = engine, spare
        self._dropped: dict[int, list[Candidate]] = {}
        self._left: dict[int, float] = {}

    def keep(self, prompt: int, alive: Sequence[Candidate], look: Look, survivors: Sequence[Candidate]) -> None:
        """Keep what a look at a prompt has dropped, before what earlier ones have."""
        if not has_safety_checker(self.engine.pipe):
            return
        passed = {candidate.index for candidate in survivors}
        ranked = [alive[row] for row in self.engine.scorer.ranked(look, self.engine.rows(alive, prompt))]
        dropped = [candidate for candidate in ranked if candidate.index not in passed]
        self._dropped[prompt] = [*dropped, *self._dropped.get(prompt, [])]

    def replace_flagged(self, done: Sequence[Candidate], look: Look) -> tuple[list[Candidate], Look]:
        """Finish candidates until no winner is flagged; all finished candidates and the look at them."""
        finished = list(done)
        while fresh := self._next(finished, look):
            ended = [
                each
                for step in sorted({candidate.step for candidate in fresh})
                for each in self.engine.denoise(
                    [candidate for candidate in fresh if candidate.step == step], step, self.engine.plan.calls
                )
            ]
            look = look.followed_by(self.engine.judge(ended))
            finished += ended
        return finished, look

    def _next(self, finished: Sequence[Candidate], look: Look) -> list[Candidate]:
        """As many candidates of each prompt as it has flagged winners, where there are some and they can be paid."""
        fresh: list[Candidate] = []
        for prompt, dropped in self._dropped.items():
            winners = self.engine.winning(look, self.engine.rows(finished, prompt))
            for _ in [row for row in winners if look.flagged[row]]:
                if dropped and self._pays(prompt, dropped[0]):
                    fresh.append(dropped.pop(0))
        return fresh

    def _pays(self, prompt: int, candidate: Candidate) -> bool:
        """Whether the budget pays for finishing a candidate, which is then taken from it."""
        if math.isinf(self.spare):
            return True
        price = priced(Cost(self.engine.plan.calls - candidate.step, 1, 1), self.engine.prices)
        left = self._left.get(prompt, self.spare)
        self._left[prompt] = left - price if price <= left else left
        return price <= left
