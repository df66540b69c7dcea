"""Pandora's index rule in the pipeline: every prompt advances the candidate of its highest index, stage by stage.

See :mod:`ttsnap.schedules.index_rule`. Candidates of several prompts that stand at the same stage run together, so it
pays to search many prompts in one call; with one prompt a micro-batch holds one candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError, ScoringError
from diffkit.segments import Candidate
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule, IndexState
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import finished_cost, priced
from ttsnap.search.session import Engine, Winner
from ttsnap.search.trace import winner_of

__all__ = ["IndexSearch"]


@dataclass(frozen=True)
class IndexSearch:
    """Search by a fitted index rule.

    Attributes:
        book: from ``diffkit ttsnap fit --rule index``.
        hard: True spends up to the budget on each prompt; False takes the budget as the mean over many prompts like
            those it was fitted on, and never spends more than ``book.cap`` times it on one.
    """

    book: IndexBook
    hard: bool = True
    name: str = "index"

    @classmethod
    def from_file(cls, path: str | Path, *, hard: bool = True) -> IndexSearch:
        """Read the rule.

        Raises:
            InputError: no such file, or another content.
        """
        return cls(IndexBook.from_json(path), hard)

    def check(self, engine: Engine) -> None:
        """Refuse another number of steps than the rule was fitted for, and more than one winner.

        Raises:
            InputError: see there.
        """
        if engine.plan.calls != self.book.model.calls:
            raise InputError(
                f"The index rule was fitted for {self.book.model.calls} denoiser calls, this denoising has "
                f"{engine.plan.calls}; use that many steps, or fit it again."
            )
        engine.plan.check_looks(self.book.model.steps)
        if engine.winners != 1:
            raise InputError("The index rule looks for one image; ask for one, or use another search.")

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Advance candidates until every prompt is done."""
        rule = self._rule(engine, limit)
        count, room = len(engine.prompts), rule.capacity()
        fresh = engine.noise.candidates(count, room)
        pool = {(candidate.prompt, candidate.index): candidate for candidate in fresh}
        state, best = rule.begin(count), dict[int, Winner]()
        while True:
            chosen = rule.next(state)
            rows = np.flatnonzero(chosen >= 0)
            if not len(rows):
                break
            stages = state.stage[rows, chosen[rows]]
            for stage in sorted(set(stages.tolist())):
                here = rows[stages == stage]
                _advance(engine, rule, state, stage, here, chosen[here], pool, best)
        engine.notes["opened"] = [int(opened) for opened in state.opened]
        lost = [prompt for prompt in range(count) if prompt not in best]
        if lost:
            raise ScoringError(f"No candidate of prompt {lost[0]} could be scored to the end.")
        return [[best[prompt]] for prompt in range(count)]

    def _rule(self, engine: Engine, limit: float) -> IndexRule:
        """At this engine's own prices.

        Raises:
            InputError: the limit does not pay for one candidate.
        """
        model, prices, calls = self.book.model, engine.ledger.flops, engine.plan.calls
        bounds = _bounds(rule_steps=model.steps, calls=calls)
        finished = finished_cost(engine)
        look = PruningSchedule((0,), (1.0,)).cost(1, calls, preview=engine.cheap_looks)
        peek = priced(look, prices) - finished  # one more look
        ends = [peek] * len(model.steps) + [finished - calls * (prices.call or 0.0)]
        costs = [(stop - start) * (prices.call or 0.0) + end
                 for start, stop, end in zip(bounds, bounds[1:], ends, strict=False)]  # fmt: skip
        if sum(costs) > limit * (1 if self.hard else self.book.cap):
            raise InputError(
                f"The budget is too small for one candidate with its looks: it costs {sum(costs):.4g} FLOP, the budget "
                f"leaves {limit:.4g}."
            )
        rule = self.book.at(limit / finished, hard=self.hard)
        return IndexRule(model, np.array(costs) / finished, rule.price, rule.limit, rule.caution, spend_all=self.hard)


def _bounds(*, rule_steps: tuple[int, ...], calls: int) -> list[int]:
    return [0, *(step + 1 for step in rule_steps), calls]


def _advance(
    engine: Engine,
    rule: IndexRule,
    state: IndexState,
    stage: int,
    prompts: NDArray[np.int64],
    chosen: NDArray[np.int64],
    pool: dict[tuple[int, int], Candidate],
    best: dict[int, Winner],
) -> None:
    """One stage for one candidate of each of these prompts."""
    bounds = _bounds(rule_steps=rule.model.steps, calls=engine.plan.calls)
    keys = list(zip(prompts.tolist(), chosen.tolist(), strict=True))
    alive = engine.denoise([pool.pop(key) for key in keys], bounds[stage], bounds[stage + 1])
    last = stage + 1 == rule.model.stages
    look = engine.judge(alive) if last else engine.estimate(alive)
    scores = np.array(look.scores, dtype=np.float64)
    scores[look.flagged] = np.nan  # for the rule: an image that cannot be handed out is worth nothing
    up = 1.0 if engine.reward.higher_is_better else -1.0
    for row, (key, candidate) in enumerate(zip(keys, alive, strict=True)):
        prompt, scored = candidate.prompt, bool(np.isfinite(look.scores[row]))
        engine.record(prompt, alive, look, [candidate] if scored else [], needed=0)
        if not scored:
            continue
        if not last:
            pool[key] = candidate
        else:
            [best[prompt]] = engine.best([*([best[prompt]] if prompt in best else []), winner_of(alive, look, row)])
    rule.observe(state, prompts, chosen, up * scores)
