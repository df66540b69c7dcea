"""Who goes on, by pure functions from scores to survivors; and the search strategies by name.

NaN never survives; ties go to the lower index. Outsiders add a strategy by the entry-point group ``diffkit.searches``:
a function from a :class:`ttsnap.schedules.pruning_schedule.PruningSchedule`, or None, to a
:class:`ttsnap.search.strategies.base.Strategy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diffkit.registry import Registry

if TYPE_CHECKING:
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.strategies.base import Strategy

__all__ = ["SEARCHES", "best_of_n", "load_search", "ranking", "top_k"]

SEARCHES: Registry[Callable[[PruningSchedule | None], Strategy]] = Registry(
    "search",
    "diffkit.searches",
    {
        "best-of-n": "ttsnap.search.strategies.pruning:best_of_n",
        "ttsp": "ttsnap.search.strategies.pruning:ttsp",
        "ttsnap": "ttsnap.search.strategies.pruning:ttsnap",
        "halving": "ttsnap.search.strategies.successive_halving:halving",
        "random": "ttsnap.search.strategies.noise_search:random_neighbours",
        "zero-order": "ttsnap.search.strategies.noise_search:zero_order",
        "fk": "ttsnap.search.strategies.fk_steering:fk_steering",
    },
)


def load_search(search: str | Strategy, schedule: PruningSchedule | None = None) -> Strategy:
    """A strategy by its registered name, or as it is; the schedule is for those that prune by one.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    return SEARCHES.get(search)(schedule) if isinstance(search, str) else search


def ranking(scores: Sequence[float], *, higher_is_better: bool = True) -> list[int]:
    """Positions of the finite scores from best to worst; equal scores keep their order."""
    sign = -1.0 if higher_is_better else 1.0
    finite = [position for position, score in enumerate(scores) if math.isfinite(score)]
    return sorted(finite, key=lambda position: (sign * scores[position], position))


def top_k(scores: Sequence[float], k: int, *, higher_is_better: bool = True) -> list[int]:
    """Positions, rising, of the ``k`` best scores; fewer when fewer are finite (fixed fractions of TTSnap)."""
    return sorted(ranking(scores, higher_is_better=higher_is_better)[:k])


def best_of_n(scores: Sequence[float], *, higher_is_better: bool = True) -> int | None:
    """Position of the best score, None when none is finite."""
    ranked = ranking(scores, higher_is_better=higher_is_better)
    return ranked[0] if ranked else None
