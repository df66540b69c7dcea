"""Replay the index rule on recorded rewards, and find the price at which it costs a given budget on average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.evaluation.budget_curves import finished_cost
from ttsnap.evaluation.replay import draw_orders
from ttsnap.reward_tensor import RewardTensor, written_pairs
from ttsnap.schedules.index_book import CAP, CAUTION, Floats, IndexBook
from ttsnap.schedules.index_rule import IndexRule, IndexState
from ttsnap.schedules.index_total import SharedBudget
from ttsnap.schedules.score_model import INDEX_STEPS, ScoreModel, stage_scores

__all__ = ["IndexReplay", "price_for_budget", "fit_index", "replay_index", "replay_total"]

Ints = NDArray[np.int64]
PRICE_STEPS = 7  # evaluations in the search for a price
SPAN = 60.0  # how far the price may move from the typical spread, as a factor


class IndexReplay(NamedTuple):
    """Searches on P prompts, each done R times: final rewards of the winners, costs in finished candidates, candidates
    opened; all (P, R)."""

    values: Floats
    spent: Floats
    opened: Ints


def replay_index(
    rule: IndexRule,
    tensor: RewardTensor,
    *,
    resamples: int = 5,
    seed: int = 0,
    stream: int = 0,
    true_values: tuple[Floats, Floats] | None = None,
) -> IndexReplay:
    """Search each prompt's pool ``resamples`` times by the index rule.

    Args:
        true_values: the prompts' true means (P, K) and spreads (P,), instead of learning them.

    Raises:
        InputError: the tensor has another number of calls than the rule's model.
    """
    return _replay(rule, tensor, rule.next, resamples, seed, stream, true_values)


def replay_total(
    rule: IndexRule,
    tensor: RewardTensor,
    budget: float,
    *,
    resamples: int = 5,
    seed: int = 0,
    stream: int = 0,
    true_values: tuple[Floats, Floats] | None = None,
) -> IndexReplay:
    """The same when the prompts share their budget: no resampling costs more than ``budget`` times the prompts.

    See :class:`ttsnap.schedules.index_total.SharedBudget`.

    Args:
        budget: for one prompt, in finished candidates.
        true_values: see :func:`replay_index`.

    Raises:
        InputError: the tensor has another number of calls than the rule's model, or the budget is too small.
    """
    prompts = len(tensor.final)
    policy = SharedBudget(rule, prompts * budget, np.tile(np.arange(resamples), prompts))
    return _replay(rule, tensor, policy.next, resamples, seed, stream, true_values)


def _replay(
    rule: IndexRule,
    tensor: RewardTensor,
    choose: Callable[[IndexState], Ints],
    resamples: int,
    seed: int,
    stream: int,
    true_values: tuple[Floats, Floats] | None,
) -> IndexReplay:
    """Advance what ``choose`` says until it says nothing; row p * resamples + r is resampling r of prompt p."""
    if tensor.calls != rule.model.calls:
        raise InputError(f"The index rule is for {rule.model.calls} calls, the rewards are of {tensor.calls}.")
    count, pool = tensor.final.shape
    scores = stage_scores(tensor, rule.model.looks)
    orders = draw_orders(range(count), pool, resamples, seed=seed, stream=stream).reshape(-1, pool)
    prompt = np.repeat(np.arange(count), resamples)
    known = None if true_values is None else (true_values[0][prompt], true_values[1][prompt])
    state = rule.begin(len(prompt), known=known, pool=pool)
    while len(rows := np.flatnonzero((chosen := choose(state)) >= 0)):
        at = chosen[rows]
        rule.observe(state, rows, at, scores[prompt[rows], orders[rows, at], state.stage[rows, at]])
    best = np.where(np.isfinite(state.best), state.best, np.nan)
    shape = (count, resamples)
    return IndexReplay(best.reshape(shape), state.spent.reshape(shape), state.opened.reshape(shape))


def price_for_budget(
    rule: IndexRule,
    tensor: RewardTensor,
    budget: float,
    *,
    resamples: int = 3,
    seed: int = 0,
    near: float | None = None,
) -> IndexRule:
    """The rule with the lowest price whose mean cost stays within a budget.

    Args:
        rule: its price is replaced; its limit caps each prompt.
        budget: mean cost, in finished candidates.
        near: a price near the one looked for, which spares evaluations.
    """
    scale = float(np.sqrt(rule.model.within[-1, -1]))
    low, high = (math.log(scale / SPAN**2), math.log(scale * SPAN)) if near is None else (
        math.log(near / 3), math.log(near * 3))  # fmt: skip
    best = replace(rule, price=math.exp(high), _table=rule.table)
    for _ in range(PRICE_STEPS if near is not None else PRICE_STEPS + 4):
        tried = replace(best, price=math.exp((low + high) / 2))
        if float(replay_index(tried, tensor, resamples=resamples, seed=seed).spent.mean()) <= budget:
            best, high = tried, math.log(tried.price)
        else:
            low = math.log(tried.price)
    return best


def fit_index(
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    *,
    steps: Sequence[int] | None = None,
    lookahead: Sequence[int] = (),
    cap: float = CAP,
    caution: float = CAUTION,
    seed: int = 0,
    resamples: int = 3,
) -> IndexBook:
    """Model and prices from recorded rewards.

    Args:
        prices: of a call, a decoding and a verification.
        budgets: mean cost of a prompt in the unit of the prices, rising.
        steps: of the looks; by default those of ``INDEX_STEPS``, stretched to the tensor's calls.
        lookahead: calls by which each of them looks ahead; none for estimates only.

    Raises:
        InputError: looks that were not recorded, or a budget that does not pay for one candidate.
    """
    looks = default_steps(tensor) if steps is None else tuple(steps)
    ahead = tuple(lookahead) or (0,) * len(looks)
    if missing := set(zip(looks, ahead, strict=True)) - set(tensor.recorded_looks):
        step, calls = min(missing)
        raise InputError(f"The rewards were not recorded at step {step}{f', {calls} calls ahead' if calls else ''}; "
                         f"choose among {tensor.recorded}{_recorded_ahead(tensor)}.")  # fmt: skip
    model = ScoreModel.fit(tensor, looks, ahead)
    costs = model.costs(prices)
    finished = finished_cost(prices, tensor.calls)
    rule = IndexRule(model, costs, 1.0, max(cap * budgets[0] / finished, float(costs.sum())), caution)
    entries: list[tuple[float, float]] = []
    near = None
    for budget in (amount / finished for amount in budgets):
        rule = replace(rule, limit=cap * budget, _table=rule.table)
        rule = price_for_budget(rule, tensor, budget, resamples=resamples, seed=seed, near=near)
        entries.append((budget, rule.price))
        near = rule.price / 1.5
    info = {"reward": tensor.name, "prompts": len(tensor.final), "seed": seed}
    return IndexBook(model, costs, tuple(entries), cap, caution, info)


def _recorded_ahead(tensor: RewardTensor) -> str:
    return f" and, ahead, {written_pairs(tensor.lookahead)}" if tensor.lookahead else ""


def default_steps(tensor: RewardTensor) -> tuple[int, ...]:
    """``INDEX_STEPS`` stretched to the tensor's calls, each moved to the nearest recorded step before the last."""
    allowed = [step for step in tensor.recorded if step < tensor.calls - 1]
    targets = [(step + 1) * tensor.calls / 20 - 1 for step in INDEX_STEPS]
    return tuple(sorted({min(allowed, key=lambda step: abs(step - target)) for target in targets})) if allowed else ()
