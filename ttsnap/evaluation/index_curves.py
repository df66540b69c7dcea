"""Reward and cost of the index rule at each mean budget, beside best-of-N at the same budget.

The rule takes a budget as the mean over the prompts of a table, and spends more on some of them than on others. What it
spent in all is shown beside what it was given, and best-of-N is the one that every schedule is compared with: the whole
number of candidates that the budget buys for each prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, allot
from ttsnap.evaluation.budget_curves import BEST_OF_N, GainCurve, finished_cost, gain_before, mean_of_winners
from ttsnap.fitting.index_fit import replay_index
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook

__all__ = ["IndexCurve", "index_curve"]

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
    """

    totals: Floats
    largest: Floats
    opened: Floats
    exhausted: NDArray[np.bool_]

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
    resamples: int = 50,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> IndexCurve:
    """Replay the index rule at each mean budget; see :func:`ttsnap.fitting.index_fit.replay_index`.

    Args:
        budgets: mean cost of a prompt, rising, in the unit of the prices.
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
    if missing := set(book.model.steps) - set(tensor.recorded):
        steps = ", ".join(map(str, tensor.recorded)) or "no step"
        raise InputError(
            f"The index rule looks at step {min(missing)}, but {tensor.name} was recorded at {steps} only."
        )
    pool, finished = tensor.final.shape[1], finished_cost(prices, tensor.calls)
    book = replace(book, costs=book.model.costs(prices))
    best = tuple(allot(budget, BEST_OF_N, tensor.calls, prices, pool=pool) for budget in budgets)
    runs = []
    for stream, budget in enumerate(budgets):
        runs.append(replay_index(book.at(budget / finished), tensor, resamples=resamples, seed=seed, stream=stream))
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
    )
