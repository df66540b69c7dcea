"""The search strategies by name.

Other packages add a strategy by the entry-point group ``diffkit.searches``: a function from a
:class:`ttsnap.schedules.pruning_schedule.PruningSchedule`, or None, to a
:class:`ttsnap.search.strategies.base.Strategy`. Those that follow a fitted index rule are functions from a
:class:`ttsnap.schedules.index_book.IndexBook`, in the group ``diffkit.index_searches``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit.errors import InputError, unknown_name
from diffkit.registry import Registry

if TYPE_CHECKING:
    from ttsnap.schedules.index_book import IndexBook
    from ttsnap.schedules.pruning_schedule import PruningSchedule
    from ttsnap.search.strategies.base import Strategy

__all__ = ["INDEX_SEARCHES", "SEARCHES", "load_search", "search_names"]

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


INDEX_SEARCHES: Registry[Callable[[IndexBook], Strategy]] = Registry(
    "search",
    "diffkit.index_searches",
    {
        "adaptive": "ttsnap.search.strategies.adaptive:AdaptiveSearch",
        "index": "ttsnap.search.strategies.index:IndexSearch",
        "index-mean": "ttsnap.search.strategies.index:index_mean",
    },
)


def search_names() -> list[str]:
    """All registered names, sorted."""
    return sorted({*SEARCHES.names(), *INDEX_SEARCHES.names()})


def load_search(
    search: str | Strategy,
    schedule: PruningSchedule | None = None,
    *,
    index: IndexBook | str | Path | None = None,
) -> Strategy:
    """A strategy by its registered name, or as it is.

    Args:
        schedule: for those that prune by one.
        index: for those that follow a fitted index rule, as :func:`ttsnap.schedules.load.load_index` reads it.

    Raises:
        InputError: an unknown name; the message lists the known ones. Or there is no index rule to follow.
    """
    if not isinstance(search, str):
        return search
    if search in INDEX_SEARCHES:
        from ttsnap.schedules.load import load_index

        if index is None:
            raise InputError(
                f"The search {search!r} needs a fitted rule; as index give lab, lab-trio, or the file that diffkit "
                f"ttsnap fit --rule index wrote."
            )
        return INDEX_SEARCHES.get(search)(load_index(index))
    if search not in SEARCHES:
        raise unknown_name("search", search, search_names())
    return SEARCHES.get(search)(schedule)
