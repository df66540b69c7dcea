"""What the index rule gains over best-of-N on prompts it was not fitted on, at the cost that was really spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.budget_curves import finished_cost
from ttsnap.fitting.index_fit import fit_index, replay_index
from ttsnap.reward_tensor import RewardTensor

__all__ = ["best_of_n_at", "held_out_differences"]

Floats = NDArray[np.float64]


def best_of_n_at(final: Floats, cost: float) -> Floats:
    """(P,) exact expectation of best-of-N at a cost in finished candidates, linear between whole N; at most the pool.

    Args:
        final: (P, N) final rewards.
        cost: at least 1.
    """
    pool = final.shape[1]
    low = min(max(1, int(cost)), pool)
    share = min(max(cost - low, 0.0), 1.0) if low < pool else 0.0
    lower = expected_best_of_n(final, low)
    return np.asarray((1 - share) * lower + share * expected_best_of_n(final, min(low + 1, pool)))


def held_out_differences(
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    *,
    folds: int = 5,
    seed: int = 0,
    resamples: int = 5,
    advance: Callable[[], object] = int,
) -> tuple[Floats, Floats]:
    """Reward of the index rule less best-of-N's, each prompt held out once.

    Args:
        budgets: mean cost of a prompt in the unit of the prices, rising.
        advance: called after each fold.

    Returns:
        differences (P, B) at the mean cost that the held-out prompts of the fold really took, and that cost (P, B) in
        finished candidates.

    Raises:
        InputError: fewer prompts than folds.
    """
    count = len(tensor.final)
    if folds < 2 or count < 2 * folds:
        raise InputError(f"{count} prompts cannot be held out in {folds} parts of at least 2.")
    finished = finished_cost(prices, tensor.calls)
    differences, spent = np.full((count, len(budgets)), np.nan), np.full((count, len(budgets)), np.nan)
    for part in np.array_split(np.random.default_rng([seed, folds]).permutation(count), folds):
        book = fit_index(tensor.select(np.setdiff1d(np.arange(count), part)), prices, budgets, seed=seed)
        held = tensor.select(part)
        for column, budget in enumerate(budgets):
            run = replay_index(book.at(budget / finished), held, resamples=resamples, seed=seed, stream=1)
            cost = float(run.spent.mean())
            differences[part, column] = np.nanmean(run.values, axis=1) - best_of_n_at(held.final, cost)
            spent[part, column] = cost
        advance()
    return differences, spent
