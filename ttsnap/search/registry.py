"""The search strategies by name.

Other packages add a strategy by the entry-point group ``diffkit.searches``: a function from a
:class:`ttsnap.schedules.pruning_schedule.PruningSchedule`, or None, to a
:class:`ttsnap.search.strategies.base.Strategy`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffkit.registry import Registry

if TYPE_CHECKING:
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.strategies.base import Strategy

__all__ = ["SEARCHES", "load_search"]

SEARCHES: Registry[Callable[[PruningSchedule | None], Strategy]] = Registry(
    "search",
    "diffkit.searches",
    {
        "best-of-n": "ttsnap.search.strategies.pruning:best_of_n",
        "ttsp": "ttsnap.search.strategies.pruning:ttsp",
        "ttsnap": "ttsnap.search.strategies.pruning:ttsnap",
        "lookahead": "ttsnap.search.strategies.lookahead:lookahead",
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
