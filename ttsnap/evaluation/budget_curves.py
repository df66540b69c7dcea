"""Reward against budget: a schedule, or one for each budget, beside best-of-N at the same budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffkit.console import say
from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.rewards.combine import Combine
from ttsnap.alignment import Utilisation, budget_utilisation, expected_best_of_n, regret, survival
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, Accounting, Allotment, allot
from ttsnap.evaluation.replay import Replay, draw_orders, replay
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = [
    "PUBLISHED_BUDGETS",
    "BudgetCurve",
    "GainCurve",
    "budget_curves",
    "finished_cost",
    "gain_before",
    "known_prices",
    "mean_of_winners",
    "parse_budgets",
    "read_budgets",
    "within_pool",
]

Floats = NDArray[np.float64]
PUBLISHED_BUDGETS = tuple(float(budget) for budget in range(400, 4001, 200))
BEST_OF_N = PruningSchedule()


@dataclass(frozen=True, eq=False, kw_only=True)
class GainCurve:
    """Final rewards of a search at each of B budgets, for P prompts, beside those of best-of-N.

    Attributes:
        name: of the reward.
        budgets: (B,) for one prompt.
        best_allotments: what best-of-N did at each budget: the whole number of candidates that it buys.
        values: (P, B) mean final reward of the winners over the resamplings.
        best_of_n: (P, B) reward of best-of-N: its exact expectation, or by resampling when several rewards choose.
        utilisation: gain over best-of-N in per cent with an interval over prompts, over the budgets before the first
            one that is capped; None when fewer than two are left.
    """

    name: str
    budgets: tuple[float, ...]
    best_allotments: tuple[Allotment, ...]
    values: Floats
    best_of_n: Floats
    utilisation: Utilisation | None

    @property
    def difference_error(self) -> Floats:
        """(B,) standard error, over prompts with both, of the mean difference to best-of-N; NaN with one prompt."""
        columns = [column[np.isfinite(column)] for column in (self.values - self.best_of_n).T]
        return np.array(
            [column.std(ddof=1) / np.sqrt(len(column)) if len(column) > 1 else np.nan for column in columns]
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class BudgetCurve(GainCurve):
    """Final rewards of a pruning schedule at each of B budgets, for P prompts.

    Attributes:
        schedules, allotments: what was done at each budget.
        survival: for each budget the mean share of searches in which the best drawn candidate reaches each stage.
        regret: (B,) mean reward that the winners lack to the best of the pool.
    """

    schedules: tuple[PruningSchedule, ...]
    allotments: tuple[Allotment, ...]
    survival: tuple[Floats, ...]
    regret: Floats


def budget_curves(
    tensors: RewardTensor | Sequence[RewardTensor],
    schedule: PruningSchedule | Callable[[float], PruningSchedule],
    budgets: Sequence[float] = PUBLISHED_BUDGETS,
    *,
    prices: Prices = PUBLISHED_PRICES,
    accounting: Accounting = "exact",
    resamples: int = 50,
    seed: int = 0,
    combine: Combine | None = None,
    advance: Callable[[], None] = lambda: None,
) -> list[BudgetCurve]:
    """Replay a schedule at each budget; one curve for each reward.

    Args:
        tensors: rewards of the same shape. Each prunes and chooses alone; with ``combine`` all do together.
        schedule: one, or the schedule of a budget.
        budgets: for one prompt, rising, in the unit of the prices. Where one pays for more candidates than were
            recorded, all of them are taken, its allotment is marked ``capped`` and its rest is unspent.
        advance: called after each budget.

    Raises:
        InputError: a budget does not pay for one candidate, budgets do not rise, or what :func:`replay` refuses.
    """
    group = [tensors] if isinstance(tensors, RewardTensor) else list(tensors)
    if not group or len({tensor.looks.shape for tensor in group}) > 1:
        raise InputError("Rewards for one table must be of the same prompts, candidates and steps.")
    if not budgets or any(later <= earlier for earlier, later in itertools.pairwise(budgets)):
        raise InputError(f"The budgets must rise, got {', '.join(f'{budget:g}' for budget in budgets) or 'none'}.")
    prompts, pool, calls = group[0].looks.shape
    schedules = tuple(schedule(budget) if callable(schedule) else schedule for budget in budgets)

    def bought(which: PruningSchedule, budget: float) -> Allotment:
        return allot(budget, which, calls, prices, accounting=accounting, pool=pool)

    ours = tuple(bought(chosen, budget) for chosen, budget in zip(schedules, budgets, strict=True))
    theirs = tuple(bought(BEST_OF_N, budget) for budget in budgets)
    searched: list[list[Replay]] = []
    plain: list[Floats] = []
    for stream, (chosen, mine, best) in enumerate(zip(schedules, ours, theirs, strict=True)):
        orders = draw_orders(range(prompts), pool, resamples, seed=seed, stream=stream)
        searched.append(_search(group, chosen, mine, orders, combine))
        plain.append(_best(group, best, orders, combine))
        advance()
    return [_curve(group[k], k, tuple(budgets), schedules, ours, theirs, searched, plain) for k in range(len(group))]


def _search(
    group: list[RewardTensor], schedule: PruningSchedule, bought: Allotment, orders: NDArray[np.int64],
    combine: Combine | None,
) -> list[Replay]:  # fmt: skip
    """One replay for each reward; with ``combine`` all are the same search."""
    n, kept = bought.candidates, bought.survivors
    if combine is None:
        return [replay(tensor, schedule, n, orders=orders, survivors=kept) for tensor in group]
    result = replay(group, schedule, n, orders=orders, survivors=kept, combine=combine)
    return [result._replace(values=result.values[..., k]) for k in range(len(group))]


def _best(group: list[RewardTensor], bought: Allotment, orders: NDArray[np.int64], combine: Combine | None) -> Floats:
    """(P, K) reward of best-of-N."""
    if combine is None:
        return np.stack([expected_best_of_n(tensor.final, bought.candidates) for tensor in group], axis=-1)
    return np.asarray(
        np.nanmean(replay(group, BEST_OF_N, bought.candidates, orders=orders, combine=combine).values, axis=1)
    )


def _curve(
    tensor: RewardTensor, k: int, budgets: tuple[float, ...], schedules: tuple[PruningSchedule, ...],
    ours: tuple[Allotment, ...], theirs: tuple[Allotment, ...], searched: list[list[Replay]], plain: list[Floats],
) -> BudgetCurve:  # fmt: skip
    runs = [at[k] for at in searched]
    values = np.stack([mean_of_winners(run.values) for run in runs], axis=-1)
    best = np.stack([at[:, k] for at in plain], axis=-1)
    capped = [mine.capped or other.capped for mine, other in zip(ours, theirs, strict=True)]
    return BudgetCurve(
        name=tensor.name,
        budgets=budgets,
        best_allotments=theirs,
        values=values,
        best_of_n=best,
        utilisation=gain_before([*capped, True].index(True), values, best, budgets),
        schedules=schedules,
        allotments=ours,
        survival=tuple(np.nanmean(survival(run.stages, tensor.final), axis=0) for run in runs),
        regret=np.array([np.nanmean(regret(run.values, tensor.final)) for run in runs]),
    )


def mean_of_winners(values: Floats) -> Floats:
    """(P,) mean of (P, R) rewards over the resamplings that have a winner; NaN for a prompt without any."""
    counts = np.isfinite(values).sum(axis=1)
    means: Floats = np.divide(np.nansum(values, axis=1), counts, out=np.full(len(values), np.nan), where=counts > 0)
    return means


def gain_before(count: int, values: Floats, best_of_n: Floats, budgets: Sequence[float]) -> Utilisation | None:
    """The gain over the first ``count`` budgets and the prompts with a reward at each; None where nothing is left."""
    whole = np.isfinite(values).all(axis=1) & np.isfinite(best_of_n).all(axis=1)
    if count < 2 or not whole.any():
        return None
    return budget_utilisation(values[whole, :count], best_of_n[whole, :count], budgets[:count])


def parse_budgets(text: str) -> tuple[float, ...]:
    """Read ``"400:4000:200"`` (first, last, step; both ends included) or ``"400,800"``.

    Raises:
        InputError: another form, or budgets that are not positive and rising.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            if not (0 < first <= last and step > 0 and np.isfinite([last, step]).all()):
                raise ValueError
            return tuple(first + step * index for index in range(int((last - first) / step + 1e-9) + 1))
        budgets = tuple(float(part) for part in text.split(","))
        if not all(0 < budget < float("inf") for budget in budgets) or list(budgets) != sorted(set(budgets)):
            raise ValueError
    except ValueError:
        raise InputError(
            f"Cannot read the budgets {text!r}; write first:last:step, as in 400:4000:200, or 400,800,1600."
        ) from None
    return budgets


def read_budgets(budgets: str | Sequence[float], prices: Prices, calls: int) -> list[float]:
    """Budgets in the unit of the prices; with an x, as in ``"2x:16x:2x"``, they count finished candidates.

    Raises:
        InputError: as :func:`parse_budgets`, or some of a list have an x and others none.
    """
    if not isinstance(budgets, str):
        return [float(budget) for budget in budgets]
    if "," in budgets and len({"x" in part for part in budgets.split(",")}) > 1:
        raise InputError(f"The budgets {budgets!r} count candidates (2x) and costs (400) in one list; choose one.")
    unit = finished_cost(prices, calls) if "x" in budgets else 1.0
    return [budget * unit for budget in parse_budgets(budgets.replace("x", ""))]


def within_pool(budgets: Sequence[float], tensor: RewardTensor, prices: Prices) -> list[float]:
    """The budgets below the first at which best-of-N would take more candidates than were recorded; rising.

    From there on nothing can be compared at equal cost. What is left out is said on the console.

    Raises:
        InputError: none is left, or one does not pay for one candidate.
    """
    pool = tensor.final.shape[1]
    capped = [allot(budget, BEST_OF_N, tensor.calls, prices, pool=pool).capped for budget in budgets]
    kept = list(budgets)[: [*capped, True].index(True)]
    unit = finished_cost(prices, tensor.calls)
    if not kept:
        raise InputError(
            f"Best-of-N takes all {pool} recorded candidates at every budget, from {budgets[0] / unit:.3g}x on; give "
            f"budgets up to {pool}x, or collect more candidates."
        )
    if len(kept) < len(budgets):
        say(
            f"Budgets from {budgets[len(kept)] / unit:.3g}x on are left out: best-of-N takes all {pool} recorded "
            "candidates there and more; collect more candidates for them."
        )
    return kept


def finished_cost(prices: Prices, calls: int) -> float:
    """Cost of one candidate that is denoised to the end, decoded and scored."""
    return calls * (prices.call or 0.0) + (prices.decode or 0.0) + (prices.verify or 0.0)


def known_prices(tensor: RewardTensor) -> Prices:
    """The prices that came with the rewards: counted when they were collected, or published with them.

    Raises:
        InputError: none did.
    """
    prices = tensor.prices
    if prices is None or prices.call is None or prices.decode is None or prices.verify is None:
        raise InputError(
            "The rewards do not say what a call and a look cost; give prices (--call-cost and --verify-cost). "
            f"Published for FLUX.1-dev at 512 x 512: {PUBLISHED_PRICES.call} and {PUBLISHED_PRICES.verify}."
        )
    return prices
