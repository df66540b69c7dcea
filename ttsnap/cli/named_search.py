"""The strategy that the options of ``diffkit ttsnap generate`` ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffkit.errors import InputError

if TYPE_CHECKING:
    from ttsnap.search.strategies.base import Strategy

__all__ = ["search_of"]


def search_of(config: Mapping[str, Any]) -> Strategy | None:
    """The strategy; None prunes by the schedule.

    Raises:
        InputError: options that do not go together, or an unknown name.
    """
    from ttsnap.schedules.load import load_schedule
    from ttsnap.search.registry import INDEX_SEARCHES, SEARCHES, load_search
    from ttsnap.search.strategies.rounds import Rounds

    name, index = config.get("search"), config.get("index")
    if index is not None and (name is None or name in SEARCHES):
        raise InputError(f"--index is for the searches {', '.join(INDEX_SEARCHES.names())}; name one with --search.")
    if "enough" in config:
        if name is not None:
            raise InputError("--enough searches in rounds that prune by --schedule; leave out --search.")
        if config["budget"] is None:
            raise InputError("--enough stops a search early; say the most it may cost with --budget, for example 64x.")
        return Rounds(config["enough"], config["rounds"], config["schedule"])
    if name is None:
        return None
    schedule = load_schedule(config["schedule"])
    return load_search(name, schedule if schedule.steps else None, index=index)
