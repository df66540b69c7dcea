"""Learn when to look and how many to keep from recorded rewards, for each budget, guarded against overfitting.

A local search (``local_search.py``) fits one schedule for each budget under the exact ledger. The gain that is
reported comes from prompts the search has not seen (cross-validation over prompts); when the 95 % interval of that
gain does not lie above zero, the result is best-of-N and says why. So it is at each budget at which pruning lost there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import Utilisation, bootstrap_ratio, budget_utilisation, expected_best_of_n
from ttsnap.evaluation.accounting import allot
from ttsnap.evaluation.budget_curves import finished_cost, known_prices, read_budgets, within_pool
from ttsnap.fitting.local_search import BEST_OF_N, Bench, search_budgets
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.fitted_schedule import Entry, Expected, FittedSchedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.trajectories.read import load_tensor

__all__ = ["fit"]

Floats = NDArray[np.float64]
HELD_OUT = 4  # times as many subsets where the gain is measured; best-of-N on the same subsets is taken away


def fit(
    tensor: RewardTensor | str | Path,
    budgets: str | Sequence[float] = "2x:16x:2x",
    *,
    prices: Prices | None = None,
    seed: int = 0,
    folds: int = 5,
    cuts: int = 6,
    tries: int = 200,
    resamples: int = 20,
    advance: Callable[[], object] = int,
) -> FittedSchedule:
    """Learn a schedule for each budget, and measure its gain over best-of-N on held-out prompts.

    Args:
        tensor: recorded rewards, or a file or folder with one reward that :func:`ttsnap.load_tensor` reads; prompts
            are the independent units.
        budgets: for one prompt, rising; one is enough. Numbers or ``"400:4000:200"`` in the unit of the prices,
            ``"2x:16x:2x"`` in finished candidates. Those that pay for more candidates than were recorded are left out.
        prices: of a call, a decoding and a score; by default those recorded with the rewards.
        seed: of subsets, folds and search; the same seed gives the same schedule.
        folds: parts of the prompts that are held out in turn.
        cuts: most looks in mid-denoising.
        tries: neighbours tried from each start, for each budget.
        resamples: random subsets of each prompt's candidates.
        advance: called after each of ``(folds + 1) * len(budgets)`` searches.

    Raises:
        InputError: budgets do not rise or do not pay for one candidate, fewer prompts than folds, or a price is
            unknown.

    Example:
        >>> from ttsnap import fit, load_tensor
        >>> fitted = fit(load_tensor("lab", "lab-noise-aware"), "8x", cuts=2, tries=10, resamples=3)
        >>> fitted.steps, fitted.keep
        ((2, 4), (0.667, 0.5))
        >>> print(fitted.conclusion())
        Gain over best-of-N on held-out prompts: ...
    """
    tensor = load_tensor(tensor) if isinstance(tensor, str | Path) else tensor
    prices = known_prices(tensor) if prices is None else prices
    limits = _checked(tensor, read_budgets(budgets, prices, tensor.calls), folds)
    limits = within_pool(limits, tensor, prices)
    count, pool = tensor.final.shape
    how = {"seed": seed, "cuts": cuts, "tries": tries}
    held = np.full((count, len(limits)), np.nan)
    for part in np.array_split(np.random.default_rng([seed, folds]).permutation(count), folds):
        train = Bench.of(tensor.select(np.setdiff1d(np.arange(count), part)), prices, resamples=resamples, seed=seed)
        schedules = search_budgets(train, limits, **how, advance=advance)
        held_out = Bench.of(tensor.select(part), prices, resamples=HELD_OUT * resamples, seed=seed, stream=1)
        for column, (budget, schedule) in enumerate(zip(limits, schedules, strict=True)):
            held[part, column] = held_out.values(schedule, budget) - held_out.values(BEST_OF_N, budget)
    bench = Bench.of(tensor, prices, resamples=resamples, seed=seed)
    sizes = [allot(budget, BEST_OF_N, tensor.calls, prices, pool=pool).candidates for budget in limits]
    plain = np.stack([expected_best_of_n(tensor.final, size) for size in sizes], axis=-1)
    schedules = search_budgets(bench, limits, **how, advance=advance)
    result = replace(
        _expected(limits, plain, plain + held, expected_best_of_n(tensor.final, 1)),
        calls=tensor.calls,
        info={
            "reward": tensor.name, "prompts": count, "candidates": pool, "seed": seed, "folds": folds, "cuts": cuts,
            "call": prices.call, "decode": prices.decode, "verify": prices.verify,
        },
    )  # fmt: skip
    return _guarded(result, bench, limits, schedules)


def _checked(tensor: RewardTensor, budgets: Sequence[float], folds: int) -> list[float]:
    limits = [float(budget) for budget in budgets]
    if not limits or any(not after > before for before, after in zip([0.0, *limits], limits, strict=False)):
        raise InputError(f"The budgets must be positive and rise, got {', '.join(map(str, budgets)) or 'none'}.")
    if folds < 2 or len(tensor.final) < folds:
        raise InputError(f"{len(tensor.final)} prompts cannot be held out in {folds} parts; give 2 folds or more, and "
                         f"a tensor with at least as many prompts.")  # fmt: skip
    return limits


def _expected(budgets: list[float], plain: Floats, held: Floats, single: Floats) -> FittedSchedule:
    """The curve on prompts that were held out, and its gain."""
    complete = np.isfinite(plain).all(axis=1) & np.isfinite(held).all(axis=1)
    if not complete.any():
        raise InputError("No prompt has a final reward for every budget; there is nothing to fit.")
    ours, theirs = held[complete], plain[complete]
    curve = []
    for at, budget in enumerate(budgets):
        interval = bootstrap_mean(ours[:, at] - theirs[:, at])
        curve.append(Expected(budget, float(theirs[:, at].mean()), float(ours[:, at].mean()), *interval))
    if len(budgets) > 1:
        gain = budget_utilisation(ours, theirs, budgets)
    else:
        above, below = ours[:, 0] - single[complete], theirs[:, 0] - single[complete]
        ratio = float(above.mean() / below.mean()) if below.mean() > 0 else math.nan
        gain = Utilisation(*(100 * (value - 1) for value in (ratio, *bootstrap_ratio(above, below))))
    value, low, high = (None if math.isnan(number) else float(number) for number in gain)
    return FittedSchedule(expected=tuple(curve), gain=value, low=low, high=high)


def _guarded(
    result: FittedSchedule, bench: Bench, budgets: list[float], schedules: list[PruningSchedule]
) -> FittedSchedule:
    """With the schedules that were found, or without any when they do not beat best-of-N on held-out prompts.

    At a budget at which they lost to it there, best-of-N stands instead.
    """
    if result.low is None or result.low <= 0:
        shown = "is not defined" if result.gain is None else f"is {result.gain:.1f} %"
        if result.low is not None and result.high is not None:
            shown += f" (95 % interval {result.low:.1f} to {result.high:.1f})"
        return replace(result, reason=f"best-of-N: the gain of pruning on held-out prompts {shown}, not above 0.")
    finished = finished_cost(bench.prices, bench.tensor.calls)
    held = [row.reward >= row.best_of_n for row in result.expected]
    guarded = [schedule if won else BEST_OF_N for schedule, won in zip(schedules, held, strict=True)]
    entries = tuple(
        Entry(budget, budget / finished, bench.counts(schedule, budget)[0], schedule)
        for budget, schedule in zip(budgets, guarded, strict=True)
    )
    middle = entries[len(entries) // 2].schedule
    return replace(result, steps=middle.steps, keep=middle.keep, lookahead=middle.lookahead, entries=entries)
