"""Reward and cost of the index rule at each budget, beside best-of-N at the same budget.

The rule spends more on some prompts than on others. With ``total`` the prompts share what they may cost together, which
is never exceeded, and at budgets where the file says so its pruning schedule is replayed instead; with ``mean`` the
price alone sets the mean cost, as in the search ``index-mean``, and the budget can be overrun. Best-of-N is the one
that every schedule is compared with: the whole number of candidates that the budget buys for each prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_changed
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, allot
from ttsnap.evaluation.budget_curves import BEST_OF_N, GainCurve, finished_cost, gain_before, mean_of_winners
from ttsnap.evaluation.replay import replay
from ttsnap.fitting.index_fit import IndexReplay, replay_index, replay_total
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["IndexCurve", "Spend", "index_curve"]

Spend = Literal["total", "mean"]
Floats = NDArray[np.float64]
OVERRUN = 1e-6  # relative: less is rounding


@dataclass(frozen=True, eq=False, kw_only=True)
class IndexCurve(GainCurve):
    """Final rewards of the index rule at each of B mean budgets, for P prompts.

    Attributes:
        totals: (B, R) what all prompts cost together in each resampling, in the unit of the prices.
        largest: (B,) most that one prompt cost.
        opened: (B,) mean number of candidates that were begun.
        exhausted: (B,) whether a search began all candidates that were recorded.
        rules: (B,) ``index``, or the schedule in its place; "" stands for best-of-N.
    """

    totals: Floats
    largest: Floats
    opened: Floats
    exhausted: NDArray[np.bool_]
    rules: tuple[str, ...]

    @property
    def spent_shares(self) -> Floats:
        """(B,) mean total cost over the total budget; above 1 the budget was overrun."""
        return np.asarray(self.totals.mean(axis=1) / (np.array(self.budgets) * len(self.values)))

    @property
    def overrun(self) -> NDArray[np.bool_]:
        """(B,) whether the mean total cost is above the total budget."""
        return np.asarray(self.spent_shares > 1 + OVERRUN)


def index_curve(
    tensor: RewardTensor,
    book: IndexBook,
    budgets: Sequence[float],
    *,
    prices: Prices = PUBLISHED_PRICES,
    spend: Spend = "total",
    resamples: int = 50,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> IndexCurve:
    """Replay the index rule at each budget; see :func:`ttsnap.fitting.index_fit.replay_total`.

    Args:
        budgets: for one prompt, on the mean over all, rising, in the unit of the prices.
        spend: ``total`` or ``mean``, see above.
        prices: of a call, a decoding and a score; the rule's own costs are replaced by what its looks cost at these.
        advance: called after each budget.

    Raises:
        InputError: budgets do not rise or do not pay for one candidate, or the rule looks at a step that was not
            recorded or is for another number of calls.

    Example:
        >>> from ttsnap.fitting.index_fit import fit_index
        >>> from ttsnap.trajectories.read import load_tensor
        >>> rewards = load_tensor("lab", "lab-noise-aware")
        >>> budgets = [amount * finished_cost(rewards.prices, rewards.calls) for amount in (2, 4)]
        >>> book = fit_index(rewards, rewards.prices, budgets)
        >>> curve = index_curve(rewards, book, budgets, prices=rewards.prices, resamples=2)
        >>> curve.values.shape, curve.totals.shape
        ((24, 2), (2, 2))
    """
    if not budgets or any(later <= earlier for earlier, later in itertools.pairwise(budgets)):
        raise InputError(f"The budgets must rise, got {', '.join(f'{budget:g}' for budget in budgets) or 'none'}.")
    if missing := set(book.model.looks) - set(tensor.recorded_looks):
        step, ahead = min(missing)
        steps = ", ".join(f"{at}+{calls}" if calls else str(at) for at, calls in tensor.recorded_looks) or "no step"
        raise InputError(
            f"The index rule looks at step {step}{f', {ahead} calls ahead' if ahead else ''}, but {tensor.name} was "
            f"recorded at {steps} only."
        )
    pool, finished = tensor.final.shape[1], finished_cost(prices, tensor.calls)
    book = with_changed(book, costs=book.model.costs(prices))
    best = tuple(allot(budget, BEST_OF_N, tensor.calls, prices, pool=pool) for budget in budgets)
    runs, rules = [], []
    for stream, budget in enumerate(budgets):
        plan = book.fallback(budget / finished) if spend == "total" else None
        how = _Draws(resamples, seed, stream)
        runs.append(_schedule(plan, tensor, budget, prices, how) if plan is not None
                    else _index(book, tensor, budget / finished, spend, how))  # fmt: skip
        rules.append("index" if plan is None else str(plan))
        advance()
    values = np.stack([mean_of_winners(run.values) for run in runs], axis=-1)
    plain = np.stack([expected_best_of_n(tensor.final, bought.candidates) for bought in best], axis=-1)
    exhausted = np.array([run.opened.max() >= pool for run in runs])
    count = next((at for at, bought in enumerate(best) if bought.capped or exhausted[at]), len(best))
    return IndexCurve(
        name=tensor.name,
        budgets=tuple(budgets),
        best_allotments=best,
        values=values,
        best_of_n=plain,
        utilisation=gain_before(count, values, plain, budgets),
        totals=np.stack([finished * run.spent.sum(axis=0) for run in runs]),
        largest=np.array([finished * run.spent.max() for run in runs]),
        opened=np.array([run.opened.mean() for run in runs]),
        exhausted=exhausted,
        rules=tuple(rules),
    )


class _Draws(NamedTuple):
    """Which random subsets are replayed."""

    resamples: int
    seed: int
    stream: int


def _index(book: IndexBook, tensor: RewardTensor, budget: float, spend: Spend, how: _Draws) -> IndexReplay:
    rule = book.at(budget)
    if spend == "mean":
        return replay_index(rule, tensor, **how._asdict())
    return replay_total(rule, tensor, budget, **how._asdict())


def _schedule(
    schedule: PruningSchedule, tensor: RewardTensor, budget: float, prices: Prices, how: _Draws
) -> IndexReplay:
    """A schedule's replay in the same form."""
    bought = allot(budget, schedule, tensor.calls, prices, pool=tensor.final.shape[1])
    values = replay(tensor, schedule, bought.candidates, survivors=bought.survivors, **how._asdict()).values
    spent = np.full(values.shape, bought.spent / finished_cost(prices, tensor.calls))
    return IndexReplay(values, spent, np.full(values.shape, bought.candidates))
