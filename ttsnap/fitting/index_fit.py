"""Replay the index rule on recorded rewards, and find the price at which it costs a given budget on average."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.flops import Prices
from ttsnap.evaluation.simulate import draw_orders
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.score_model import INDEX_STEPS, ScoreModel, price_table

__all__ = ["CAP", "CAUTION", "IndexBook", "IndexReplay", "calibrate", "fit_index", "replay_index"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SCHEMA = 1
CAP = 2.0  # most that one prompt may cost, over the mean budget
CAUTION = 4.0
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
    known: tuple[Floats, Floats] | None = None,
) -> IndexReplay:
    """Search each prompt's pool ``resamples`` times by the index rule.

    Args:
        known: the prompts' true means (P, K) and spreads (P,), instead of learning them.

    Raises:
        InputError: the tensor has another number of calls than the rule's model.
    """
    if tensor.calls != rule.model.calls:
        raise InputError(f"The index rule is for {rule.model.calls} calls, the rewards are of {tensor.calls}.")
    count, pool = tensor.final.shape
    scores = np.concatenate([tensor.looks[:, :, list(rule.model.steps)], tensor.final[:, :, None]], axis=-1)
    orders = draw_orders(range(count), pool, resamples, seed=seed, stream=stream).reshape(-1, pool)
    prompt = np.repeat(np.arange(count), resamples)
    if known is not None:
        known = (known[0][prompt], known[1][prompt])
    state = rule.begin(len(prompt), known=known, pool=pool)
    while True:
        chosen = rule.next(state)
        rows = np.flatnonzero(chosen >= 0)
        if not len(rows):
            break
        at = chosen[rows]
        found = scores[prompt[rows], orders[rows, at], state.stage[rows, at]]
        rule.observe(state, rows, at, found)
    best = np.where(np.isfinite(state.best), state.best, np.nan)
    shape = (count, resamples)
    return IndexReplay(best.reshape(shape), state.spent.reshape(shape), state.opened.reshape(shape))


def calibrate(
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


@dataclass(frozen=True, eq=False)
class IndexBook:
    """Prices of the index rule by mean budget, with the model they were found for.

    Attributes:
        entries: (budget, price), budgets in finished candidates (best-of-N equivalents), rising.
        cap: most that one prompt may cost, over the mean budget.
        info: where it comes from.
    """

    model: ScoreModel
    costs: Floats
    entries: tuple[tuple[float, float], ...]
    cap: float = CAP
    caution: float = CAUTION
    info: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def table(self) -> tuple[Floats, Floats]:
        """The offsets at every price, shared by the rules of all budgets."""
        return price_table(self.model, self.costs)

    def at(self, budget: float, *, hard: bool = False) -> IndexRule:
        """The rule for a mean budget in finished candidates; prices between entries are interpolated, both by ratio.

        Args:
            hard: no prompt may cost more than the budget, and each spends all it can of it.
        """
        budgets, prices = np.log(np.array(self.entries)).T
        price = math.exp(float(np.interp(math.log(budget), budgets, prices)))
        limit = budget if hard else self.cap * budget
        return IndexRule(self.model, self.costs, price, limit, self.caution, spend_all=hard, _table=self.table)

    def to_json(self) -> str:
        """The content of a file that :meth:`from_json` reads."""
        return json.dumps({
            "schema": SCHEMA, "kind": "ttsnap-index", "model": self.model.to_dict(), "costs": list(self.costs),
            "entries": [list(entry) for entry in self.entries], "cap": self.cap, "caution": self.caution,
            "info": dict(self.info),
        }, indent=1, allow_nan=False)  # fmt: skip

    @classmethod
    def from_json(cls, path: str | Path) -> IndexBook:
        """Read such a file.

        Raises:
            InputError: no such file, another content or a newer schema.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["kind"] != "ttsnap-index" or content["schema"] > SCHEMA:
                raise ValueError(f"kind {content['kind']!r}, schema {content['schema']}")
            entries = tuple((float(budget), float(price)) for budget, price in content["entries"])
            if not entries or min(min(entry) for entry in entries) <= 0:
                raise ValueError("entries must be positive")
            model = ScoreModel.from_dict(content["model"])
            costs = np.array(content["costs"], dtype=np.float64)
            return cls(model, costs, entries, content["cap"], content["caution"], content["info"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"Cannot read an index rule from {str(path)!r}: {type(error).__name__}: {error}."
            ) from error


def fit_index(
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    *,
    steps: Sequence[int] | None = None,
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

    Raises:
        InputError: looks that were not recorded, or a budget that does not pay for one candidate.
    """
    looks = default_steps(tensor) if steps is None else tuple(steps)
    if missing := set(looks) - set(tensor.recorded):
        raise InputError(f"The rewards were not recorded at step {min(missing)}; choose among {tensor.recorded}.")
    model = ScoreModel.fit(tensor, looks)
    costs = model.costs(prices)
    one = tensor.calls * (prices.call or 0.0) + (prices.decode or 0.0) + (prices.verify or 0.0)
    rule = IndexRule(model, costs, 1.0, max(cap * budgets[0] / one, float(costs.sum())), caution)
    entries: list[tuple[float, float]] = []
    near = None
    for budget in (amount / one for amount in budgets):
        rule = replace(rule, limit=cap * budget, _table=rule.table)
        rule = calibrate(rule, tensor, budget, resamples=resamples, seed=seed, near=near)
        entries.append((budget, rule.price))
        near = rule.price / 1.5
    info = {"reward": tensor.name, "prompts": len(tensor.final), "seed": seed}
    return IndexBook(model, costs, tuple(entries), cap, caution, info)


def default_steps(tensor: RewardTensor) -> tuple[int, ...]:
    """``INDEX_STEPS`` stretched to the tensor's calls, each moved to the nearest recorded step before the last."""
    allowed = [step for step in tensor.recorded if step < tensor.calls - 1]
    wanted = [(step + 1) * tensor.calls / 20 - 1 for step in INDEX_STEPS]
    return tuple(sorted({min(allowed, key=lambda step: abs(step - want)) for want in wanted})) if allowed else ()
