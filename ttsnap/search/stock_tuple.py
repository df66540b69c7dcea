"""What ``return_dict=False`` returns: the values of the family's own pipeline, and the search's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["StockTuple"]


class StockTuple(tuple[Any, ...]):
    """The tuple that the stock pipeline returns; ``search`` is the whole output of the search.

    Example:
        >>> images, flagged = values = StockTuple(["image", None], "seeds, rewards and so on")
        >>> values[0], flagged, values.search
        ('image', None, 'seeds, rewards and so on')
    """

    search: Any

    def __new__(cls, values: Sequence[object], search: object) -> StockTuple:
        """A tuple of ``values``."""
        made = super().__new__(cls, values)
        made.search = search
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """For copies and pickles."""
        return tuple(self), self.search
