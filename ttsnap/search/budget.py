"""How many candidates a budget buys: the exact cost of a schedule, and the most candidates that stay inside a limit.

A limit is in the unit of the prices it is compared with: FLOP, seconds, or the constants of a published simulation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diffkit.errors import InputError
from diffkit.ledger import Budget, Cost, Prices
from ttsnap.schedules.pruning_schedule import PruningSchedule

if TYPE_CHECKING:
    from ttsnap.search.session import Engine

__all__ = [
    "affordable",
    "affordable_candidates",
    "finished_cost",
    "most_within",
    "planned_cost",
    "priced",
    "resolved",
    "schedule_cost",
    "spending_limit",
]

TIME_MARGIN = 0.9  # share of a budget in seconds that the search is planned for; the pace of a machine varies


def most_within(limit: float, cost: Callable[[int], float]) -> int:
    """The largest number of candidates whose cost stays within ``limit``.

    Args:
        cost: number of candidates -> exact cost in the unit of ``limit``, rising.

    Raises:
        InputError: not even one candidate fits.
    """
    if cost(1) > limit:
        raise InputError(
            f"The budget is too small for one candidate: one costs {cost(1):.4g}, the budget leaves {limit:.4g}."
        )
    high = 2
    while cost(high) <= limit:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def priced(cost: Cost, prices: Prices) -> float:
    """The cost in the unit of the prices.

    Raises:
        InputError: a price is unknown.
    """
    total = cost.at(prices)
    if total is None:
        raise InputError(
            "The price of a denoiser call, a decoding or a score is not known, so this budget cannot be kept; give "
            "num_candidates, or a budget in seconds."
        )
    return total


def schedule_cost(
    schedule: PruningSchedule,
    candidates: int,
    calls: int,
    prices: Prices,
    *,
    preview: bool = False,
    survivors: Sequence[int] | None = None,
    rows: Callable[[int], int] | None = None,
) -> float:
    """Exact cost of a search over ``candidates`` seeds when every score is finite.

    Args:
        calls: denoiser calls of one finished candidate.
        preview: whether estimates are decoded by a preview decoder.
        survivors: how many are left after each look instead of ``schedule.survivors(candidates)``.
        rows: candidates of a stage -> what the denoiser runs for them, padding included; for prices in seconds.

    Raises:
        InputError: a price is unknown.
    """
    cost = schedule.cost(candidates, calls, preview=preview, survivors=survivors)
    if rows is not None:
        stages = schedule.stages(candidates, calls, survivors)
        cost = cost._replace(calls=sum(stage.calls * rows(stage.candidates) for stage in stages))
    return priced(cost, prices)


def affordable_candidates(
    limit: float,
    schedule: PruningSchedule,
    calls: int,
    prices: Prices,
    *,
    preview: bool = False,
) -> int:
    """The most candidates whose :func:`schedule_cost` stays within ``limit``.

    Raises:
        InputError: a price is unknown, or not even one candidate fits.

    Example:
        >>> affordable_candidates(4000, PruningSchedule.parse("2:0.4,6:0.4,11:0.5"), 20, Prices(9.9, 0.0, 1.2))
        65
    """
    return most_within(limit, lambda n: schedule_cost(schedule, n, calls, prices, preview=preview))


def affordable(engine: Engine, limit: float, schedule: PruningSchedule, *, at_least: int = 1) -> int:
    """How many candidates each prompt of a search starts with: the user's number, or the most within ``limit``.

    Args:
        limit: of each prompt, in the unit of ``engine.prices``.
        at_least: how many must be left after the last look.

    Raises:
        InputError: fewer are left, a price is unknown, or not even one candidate fits.
    """
    n = engine.num_candidates
    if n is None:
        n = most_within(limit, lambda count: planned_cost(engine, schedule, count))
    left = [n, *schedule.survivors(n)][-1]
    if left >= at_least:
        return n
    if engine.num_candidates is None:
        raise InputError(
            f"The budget pays for {n} candidates, of which {left} reach the end, fewer than the {at_least} images "
            f"asked for; raise it."
        )
    raise InputError(
        f"{n} candidates leave {left} survivors, fewer than the {at_least} images asked for; try more candidates, "
        f"keep larger shares or ask for fewer images."
    )


def planned_cost(engine: Engine, schedule: PruningSchedule, candidates: int) -> float:
    """What a search costs each prompt when every score is finite, in the unit of ``engine.prices``.

    In seconds the rows that pad micro-batches count too.

    Raises:
        InputError: a price is unknown.
    """
    rows = None if engine.pace is None else engine.denoising.rows
    return schedule_cost(schedule, candidates, engine.plan.calls, engine.prices, preview=engine.scorer.cheap, rows=rows)


def resolved(engine: Engine, limit: float, schedule: PruningSchedule) -> PruningSchedule:
    """What the schedule is for a search; a fitted one changes with the budget or the number of candidates.

    Raises:
        InputError: a price is unknown, or it does not fit the denoising.
    """
    calls = engine.plan.calls
    if engine.num_candidates is not None:
        result = schedule.resolve(calls, candidates=engine.num_candidates)
    else:
        result = schedule.resolve(calls, equivalent=max(limit / finished_cost(engine), 1.0))
    result.validate(calls)
    engine.plan.check_looks(result.steps)
    return result


def finished_cost(engine: Engine) -> float:
    """What one candidate denoised to the end costs, in the unit of ``engine.prices``.

    Raises:
        InputError: a price is unknown.
    """
    return schedule_cost(PruningSchedule(), 1, engine.plan.calls, engine.prices)


def spending_limit(budget: Budget, engine: Engine, *, spent_flop: float, began: float) -> float:
    """What each prompt may still cost, in the unit of ``engine.prices``.

    Args:
        budget: ``x`` counts candidates denoised to the end, text and trying the reward aside; of seconds only
            ``TIME_MARGIN`` are planned for.
        spent_flop: already spent for each prompt, on text and trying the reward.
        began: ``time.perf_counter()`` when the clock of a budget in seconds started.

    Raises:
        InputError: a price is unknown.
    """
    if budget.unit == "s":
        return budget.amount * TIME_MARGIN - (time.perf_counter() - began) / len(engine.prompts)
    return budget.amount * finished_cost(engine) if budget.unit == "x" else budget.amount - spent_flop
