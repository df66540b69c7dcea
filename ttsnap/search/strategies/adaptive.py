"""Adaptive budget: the prompts of a call share what they may cost, and each gets what it is worth.

The index rule (:mod:`ttsnap.schedules.index_rule`) under one total for all prompts
(:mod:`ttsnap.schedules.index_total`): 16x for each of ten prompts is a total of 160 finished candidates, of which a
prompt that is soon well served takes few and another many, at most ``book.cap`` times its part. The total is never
exceeded. At budgets where the book holds a schedule instead, because that was better on prompts held out, every prompt
is pruned by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_total import SLACK, SharedBudget
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import finished_cost
from ttsnap.search.session import Engine, Winner
from ttsnap.search.strategies.index import advance_all, check_book, stage_costs
from ttsnap.search.strategies.pruning import Pruning

__all__ = ["AdaptiveSearch"]


@dataclass(frozen=True)
class AdaptiveSearch:
    """Search by a fitted index rule, all prompts of a call under one total.

    Attributes:
        book: from ``diffkit ttsnap fit --rule index``.

    Example:
        >>> from ttsnap import TTSnapPipeline
        >>> pipe = TTSnapPipeline.from_pretrained("lab", reward="lab-noise-aware")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> captions = ["a red circle on gray", "a blue square left of a red circle on gray"]
        >>> out = pipe(captions, search="adaptive", index="lab", budget="2x", num_inference_steps=20,
        ...            guidance_scale=3.0, seed=7)
        >>> len(out.images), sum(cost.calls for cost in out.spent) == out.ledger.calls <= 80
        (2, True)
    """

    book: IndexBook
    name: str = "adaptive"

    def check(self, engine: Engine) -> None:
        """Refuse another number of steps than the rule was fitted for, more than one winner, and schedules that do not
        fit.

        Raises:
            InputError: see there.
        """
        check_book(engine, self.book)
        for plan in self.book.fallbacks:
            if plan is not None:
                self._pruning(plan).check(engine)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Spend ``limit`` a prompt on the mean over the prompts; best-of-N where that does not pay for looks.

        ``engine.notes["schedule"]`` is the schedule that was searched by, or ``index``.

        Raises:
            InputError: the limit does not pay for one candidate.
            ScoringError: no candidate of a prompt could be scored to the end.
        """
        budget, costs = limit / finished_cost(engine), stage_costs(engine, self.book.model)
        plan = self.book.fallback(budget) if budget >= costs.sum() else PruningSchedule()
        if plan is not None:
            return self._pruning(plan).run(engine, limit)
        engine.notes["schedule"] = "index"
        rule = replace(self.book, costs=costs).at(budget)
        count = len(engine.prompts)
        total = count * budget / (1 + SLACK)  # which SharedBudget allows for rounding
        return advance_all(engine, rule, SharedBudget(rule, total, np.zeros(count, dtype=np.int64)).next)

    def _pruning(self, plan: PruningSchedule) -> Pruning:
        return Pruning(self.name, plan, "either")
