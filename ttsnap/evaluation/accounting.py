"""How many candidates a budget pays for, under the exact ledger and under two looser ways of counting.

``exact``
    Whole calls and whole survivors, as the pipeline spends them: a score at step index s takes s + 1 calls, every
    look and the last score are charged, the budget is never overrun and what is left is reported.
``fractional``
    The right charges, but survivors in the cost are fractions (0.4 of 9 is 3.6) while the search keeps whole ones.
    The number of candidates is ``int(budget / cost of one)``: no remainder is lost to rounding, but a single budget
    can be overrun by a few per cent. Gains are 2 to 4 points higher than under ``exact``.
``published``
    The authors' simulation (arXiv 2511.22242), kept so that its figures can be reproduced: ``fractional`` with a
    score at index s charged s calls, so that each candidate gets one call for nothing.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

from diffkit.errors import InputError
from diffkit.ledger import Cost, Prices
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable_candidates, priced, schedule_cost

__all__ = ["PUBLISHED_PRICES", "Accounting", "Allotment", "allot", "fractional_cost"]

Accounting = Literal["exact", "fractional", "published"]
PUBLISHED_PRICES = Prices(call=9.9, decode=0.0, verify=1.2)
"""The authors' constants for FLUX.1-dev at 512 x 512; their unit is tera-multiply-accumulates, decoding included."""

SLACK = 1e-9  # relative; 10 candidates at 199.2 fit into 1992 whatever the rounding of floats


class Allotment(NamedTuple):
    """What a budget buys.

    Attributes:
        candidates: seeds to begin with.
        survivors: how many are left after each look, as the search will keep them.
        spent: what that costs when counted exactly, whatever the accounting.
        unspent: the rest of the budget; negative where the accounting overruns it.
        capped: whether the budget would have paid for more candidates than there are.
    """

    candidates: int
    survivors: tuple[int, ...]
    spent: float
    unspent: float
    capped: bool


def allot(
    budget: float,
    schedule: PruningSchedule,
    calls: int,
    prices: Prices = PUBLISHED_PRICES,
    *,
    accounting: Accounting = "exact",
    pool: int | None = None,
) -> Allotment:
    """The most candidates that a budget pays for.

    Args:
        budget: for one prompt, in the unit of the prices.
        calls: T, denoiser calls of one finished candidate.
        pool: candidates there are; more are not taken, and ``capped`` says so.

    Raises:
        InputError: the budget does not pay for one candidate, a price is unknown, or a look comes too late.
    """
    schedule.validate(calls)
    limit, preview = budget * (1 + SLACK), prices.preview is not None
    if accounting == "exact" or not schedule.steps:
        bought = affordable_candidates(limit, schedule, calls, prices, preview=preview)
    else:
        bought = int(limit / fractional_cost(schedule, calls, prices, free_call=accounting == "published"))
        if bought < 1:
            raise InputError(f"The budget {budget:g} is too small for one candidate.")
    n = bought if pool is None else min(bought, pool)
    survivors = schedule.survivors(n) if accounting == "exact" else _published_survivors(schedule, n)
    spent = schedule_cost(schedule, n, calls, prices, preview=preview, survivors=survivors)
    return Allotment(n, tuple(survivors), spent, budget - spent, n < bought)


def fractional_cost(schedule: PruningSchedule, calls: int, prices: Prices, *, free_call: bool = False) -> float:
    """Cost of one candidate when survivors may be fractions.

    Args:
        free_call: charge a score at index s with s calls, as the authors' code does; without a look that is one call
            less than best-of-N really takes.
    """
    call, last = priced(Cost(1, 0, 0), prices), priced(Cost(0, 1, 1), prices)
    look = last if prices.preview is None else priced(Cost(0, 0, 1, 1), prices)
    reached = [0, *(step + (0 if free_call else 1) for step in schedule.steps), calls - (1 if free_call else 0)]
    shares = itertools.accumulate((1.0, *schedule.keep), lambda left, share: left * share)
    ends = zip(reached[1:], [*schedule.calls_ahead, 0], strict=True)
    calls_of = [stop + ahead - start for start, (stop, ahead) in zip(reached, ends, strict=False)]
    spans = zip(shares, [*[look] * len(schedule.steps), last], calls_of, strict=True)
    return float(sum(share * (number * call + judged) for share, judged, number in spans))


def _published_survivors(schedule: PruningSchedule, n: int) -> list[int]:
    """As the authors' code rounds: half to even, at least 1."""
    kept = []
    for share in schedule.keep:
        n = max(1, round(n * share))
        kept.append(n)
    return kept
