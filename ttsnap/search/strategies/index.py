"""Pandora's index rule in the pipeline: every prompt advances the candidate of its highest index, stage by stage.

See :mod:`ttsnap.schedules.index_rule`. Candidates of several prompts that stand at the same stage run together, so it
pays to search many prompts in one call; with one prompt a micro-batch holds one candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError, ScoringError
from diffkit.segments import Candidate
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule, IndexState
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.schedules.score_model import ScoreModel
from ttsnap.search.budget import finished_cost, priced
from ttsnap.search.session import Engine, Winner
from ttsnap.search.trace import merged_looks, winner_of

__all__ = ["IndexSearch", "advance_all", "check_book", "index_mean", "stage_costs"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class IndexSearch:
    """Search by a fitted index rule, each prompt for itself.

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
        check_book(engine, self.book)

    def run(self, engine: Engine, limit: float) -> list[list[Winner]]:
        """Advance candidates until every prompt is done."""
        rule = self._rule(engine, limit)
        return advance_all(engine, rule, rule.next)

    def _rule(self, engine: Engine, limit: float) -> IndexRule:
        """At this engine's own prices.

        Raises:
            InputError: the limit does not pay for one candidate.
        """
        costs, finished = stage_costs(engine, self.book.model), finished_cost(engine)
        least = float(costs.sum()) * finished
        if least > limit * (1 if self.hard else self.book.cap):
            raise InputError(
                f"The budget is too small for one candidate with its looks: it costs {least:.4g} FLOP, the budget "
                f"leaves {limit:.4g}."
            )
        return replace(self.book, costs=costs).at(limit / finished, hard=self.hard)


def index_mean(book: IndexBook) -> IndexSearch:
    """The search that takes the budget as a mean."""
    return IndexSearch(book, hard=False, name="index-mean")


def check_book(engine: Engine, book: IndexBook) -> None:
    """Whether a rule can be followed here.

    Raises:
        InputError: it was fitted for another number of steps, there is no estimate at one of its looks, or more than
            one winner is asked for.
    """
    if engine.plan.calls != book.model.calls:
        raise InputError(
            f"The index rule was fitted for {book.model.calls} denoiser calls, this denoising has "
            f"{engine.plan.calls}; use that many steps, or fit it again."
        )
    rule = PruningSchedule(book.model.steps, (1.0,) * len(book.model.steps), lookahead=book.model.lookahead)
    rule.validate(engine.plan.calls)
    engine.plan.check_looks(rule.steps)
    if engine.winners != 1:
        raise InputError("The index rule looks for one image; ask for one, or use another search.")


def stage_costs(engine: Engine, model: ScoreModel) -> NDArray[np.float64]:
    """(K,) cost of each stage at this engine's own prices, in finished candidates.

    Raises:
        InputError: a price is unknown.
    """
    prices, calls = engine.prices, engine.plan.calls
    bounds, finished = _bounds(model, calls), finished_cost(engine)
    look = PruningSchedule((0,), (1.0,)).cost(1, calls, preview=engine.scorer.cheap)
    peek = priced(look, prices) - finished  # one more look
    ends = [peek + ahead * (prices.call or 0.0) for _, ahead in model.looks]
    ends.append(finished - calls * (prices.call or 0.0))
    costs = [(stop - start) * (prices.call or 0.0) + end
             for start, stop, end in zip(bounds, bounds[1:], ends, strict=False)]  # fmt: skip
    return np.array(costs) / finished


def advance_all(engine: Engine, rule: IndexRule, choose: Callable[[IndexState], Ints]) -> list[list[Winner]]:
    """Advance the candidate that ``choose`` names for each prompt, by one stage, until it names none.

    Args:
        choose: :meth:`IndexRule.next`, or one that lets prompts wait for each other.

    Returns:
        The best finished candidate of each prompt. The trace has one look for each prompt and stage.

    Raises:
        ScoringError: no candidate of a prompt could be scored to the end.
    """
    count = len(engine.prompts)
    fresh = engine.noise.candidates(count, rule.capacity())
    pool = {(candidate.prompt, candidate.index): candidate for candidate in fresh}
    state, best = rule.begin(count), dict[int, Winner]()
    while len(rows := np.flatnonzero((chosen := choose(state)) >= 0)):
        stages = state.stage[rows, chosen[rows]]
        for stage in sorted(set(stages.tolist())):
            here = rows[stages == stage]
            _advance(engine, rule, state, stage, here, chosen[here], pool, best)
    engine.notes["opened"] = [int(opened) for opened in state.opened]
    lost = [prompt for prompt in range(count) if prompt not in best]
    if lost:
        raise ScoringError(f"No candidate of prompt {lost[0]} could be scored to the end.")
    winners = {prompt: winner.candidate.index for prompt, winner in best.items()}
    engine.trace[:] = merged_looks(engine.trace, winners)
    return [[best[prompt]] for prompt in range(count)]


def _bounds(model: ScoreModel, calls: int) -> list[int]:
    return [0, *(step + 1 for step in model.steps), calls]


def _advance(
    engine: Engine,
    rule: IndexRule,
    state: IndexState,
    stage: int,
    prompts: Ints,
    chosen: Ints,
    pool: dict[tuple[int, int], Candidate],
    best: dict[int, Winner],
) -> None:
    """One stage for one candidate of each of these prompts."""
    bounds = _bounds(rule.model, engine.plan.calls)
    keys = list(zip(prompts.tolist(), chosen.tolist(), strict=True))
    alive = engine.denoise([pool.pop(key) for key in keys], bounds[stage], bounds[stage + 1])
    last = stage + 1 == rule.model.stages
    look = engine.judge(alive) if last else engine.estimate(alive, lookahead=rule.model.looks[stage][1])
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
