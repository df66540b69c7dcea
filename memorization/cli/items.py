"""Suspects and controls as the commands read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.console import say

if TYPE_CHECKING:
    from memorization.items import Gathered

SHOWN_ERRORS = 10


def gather_items(suspects: str, controls: str, *, limit: int | None, limit_controls: int | None) -> Gathered:
    """The suspects and controls of a command's options; controls may be ``none``."""
    from memorization.items import gather

    return gather(suspects, None if controls == "none" else controls, limit=limit, limit_controls=limit_controls)


def print_row_errors(gathered: Gathered) -> None:
    """The first rows that could not be read, and why."""
    for error in [*gathered.suspect_errors, *gathered.control_errors][:SHOWN_ERRORS]:
        say(f"{error.source}, row {error.row}: {error.reason}")
