"""What the index rule and a learned schedule gain over best-of-N on prompts they were not fitted on, at one budget.

The rule spends one total over the prompts (:mod:`ttsnap.schedules.index_total`) and never more. All are compared with
best-of-N at the same budget: the whole number of candidates that it buys for each prompt. At each budget the better of
rule and schedule on held-out prompts is kept; where neither beats best-of-N that is best-of-N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.budget_curves import finished_cost, mean_of_winners, within_pool
from ttsnap.fitting.index_fit import fit_index, replay_total
from ttsnap.fitting.local_search import BEST_OF_N, Bench, search_budgets
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["Difference", "HeldOut", "HeldOutRow", "best_of_n_at", "book_differences", "fit_guarded"]

Floats = NDArray[np.float64]


class Difference(TypedDict):
    """Mean reward less best-of-N's at the same budget, with its 95 % interval over prompts."""

    difference: float
    low: float
    high: float


class HeldOutRow(Difference):
    """One budget of :class:`HeldOut`, in finished candidates: the index rule's difference, the schedule's, and which is
    kept there."""

    equivalent: float
    price: float
    spent: float
    schedule: Difference
    kept: str


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Rewards less best-of-N's at the same budget, each prompt held out once.

    Attributes:
        index, schedule: (P, B) of the index rule and of the schedule that was learned for each budget.
        spent: (P, B) what the index rule cost, in finished candidates.
    """

    index: Floats
    schedule: Floats
    spent: Floats

    def kept(self) -> list[str]:
        """For each budget what is best on held-out prompts: ``index``, ``schedule`` or ``best-of-n``."""
        index, schedule = np.nanmean(self.index, axis=0), np.nanmean(self.schedule, axis=0)
        return [
            "best-of-n" if max(own, other) <= 0 else "index" if own > other else "schedule"
            for own, other in zip(index, schedule, strict=True)
        ]

    def rows(self, book: IndexBook) -> list[HeldOutRow]:
        """One for each budget, with the 95 % intervals over prompts."""
        return [
            HeldOutRow(
                equivalent=budget,
                price=price,
                spent=float(np.nanmean(self.spent[:, column])),
                **_difference(self.index[:, column]),
                schedule=_difference(self.schedule[:, column]),
                kept=kept,
            )
            for column, ((budget, price), kept) in enumerate(zip(book.entries, self.kept(), strict=True))
        ]


def _difference(values: Floats) -> Difference:
    known = values[np.isfinite(values)]
    low, high = bootstrap_mean(known)
    return Difference(difference=float(known.mean()), low=low, high=high)


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


def fit_guarded(
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    *,
    folds: int = 5,
    seed: int = 0,
    cuts: int = 6,
    tries: int = 200,
    resamples: int = 20,
    advance: Callable[[], object] = int,
) -> tuple[IndexBook, HeldOut]:
    """An index rule that gives way to the learned schedule at the budgets where that is better on held-out prompts.

    Args:
        budgets: mean cost of a prompt in the unit of the prices, rising. Those that pay for more candidates than were
            recorded are left out.
        cuts, tries, resamples: of the schedules, see :func:`ttsnap.fitting.fit_schedule.fit`.
        advance: called after each of ``folds + 1`` fits.

    Raises:
        InputError: fewer prompts than folds need, or what :func:`ttsnap.fitting.index_fit.fit_index` refuses.
    """
    budgets = within_pool(budgets, tensor, prices)
    count = len(tensor.final)
    if folds < 2 or count < 2 * folds:
        raise InputError(f"{count} prompts cannot be held out in {folds} parts of at least 2.")
    how = {"seed": seed, "cuts": cuts, "tries": tries}
    index, schedule, spent = (np.full((count, len(budgets)), np.nan) for _ in range(3))
    for part in np.array_split(np.random.default_rng([seed, folds]).permutation(count), folds):
        train, held = tensor.select(np.setdiff1d(np.arange(count), part)), tensor.select(part)
        book = fit_index(train, prices, budgets, seed=seed)
        bench = Bench.of(train, prices, resamples=resamples, seed=seed)
        plans = search_budgets(bench, budgets, **how, advance=int)
        index[part], spent[part] = book_differences(book, held, prices, budgets, seed=seed)
        schedule[part] = _schedule_differences(plans, held, prices, budgets, 4 * resamples, seed)
        advance()
    held_out = HeldOut(index, schedule, spent)
    book = fit_index(tensor, prices, budgets, seed=seed)
    plans = search_budgets(Bench.of(tensor, prices, resamples=resamples, seed=seed), budgets, **how, advance=int)
    advance()
    options: list[dict[str, PruningSchedule | None]] = [
        {"index": None, "schedule": plan, "best-of-n": BEST_OF_N} for plan in plans
    ]
    fallbacks = tuple(option[kept] for option, kept in zip(options, held_out.kept(), strict=True))
    return replace(book, fallbacks=fallbacks), held_out


def book_differences(
    book: IndexBook,
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    *,
    resamples: int = 6,
    seed: int = 0,
) -> tuple[Floats, Floats]:
    """(P, B) reward of a book's searches less best-of-N's at the same budget, and (P, B) their cost.

    Where the book has a fallback, that is replayed.
    """
    finished = finished_cost(prices, tensor.calls)
    bench = Bench.of(tensor, prices, resamples=4 * resamples, seed=seed, stream=1)
    differences, spent = [], []
    for budget in budgets:
        plan = book.fallback(budget / finished)
        if plan is not None:
            values = bench.values(plan, budget)
            costs = np.full(len(values), bench.cost(plan, budget) / finished)
        else:
            run = replay_total(book.at(budget / finished), tensor, budget / finished, resamples=resamples, seed=seed,
                               stream=1)  # fmt: skip
            values, costs = mean_of_winners(run.values), run.spent.mean(axis=1)
        differences.append(values - _plain(bench, budget))
        spent.append(costs)
    return np.stack(differences, axis=-1), np.stack(spent, axis=-1)


def _schedule_differences(
    schedules: Sequence[PruningSchedule],
    tensor: RewardTensor,
    prices: Prices,
    budgets: Sequence[float],
    resamples: int,
    seed: int,
) -> Floats:
    bench = Bench.of(tensor, prices, resamples=resamples, seed=seed, stream=1)
    pairs = zip(schedules, budgets, strict=True)
    return np.stack([bench.values(schedule, budget) - _plain(bench, budget) for schedule, budget in pairs], axis=-1)


def _plain(bench: Bench, budget: float) -> Floats:
    """(P,) best-of-N as the budget buys it."""
    return expected_best_of_n(bench.tensor.final, bench.counts(BEST_OF_N, budget)[0])
