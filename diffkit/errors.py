"""Errors whose message is one sentence: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["DiffkitError", "InputError", "Interrupted", "ScoringError", "unknown_name"]


class DiffkitError(Exception):
    """Any failure the toolkit explains itself. The command line prints the message and exits with `exit_code`."""

    exit_code: int = 2


class InputError(DiffkitError, ValueError):
    """Wrong user input, found before anything is computed: nothing has run and nothing was written."""


class ScoringError(DiffkitError):
    """An item that could not be scored. Its message is the reason that stands in the record beside a null score."""

    exit_code = 3


class Interrupted(KeyboardInterrupt):
    """Ctrl-C inside a run. `folder` is the run's folder, where the same command goes on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; the run in {folder} can be resumed")
        self.folder = folder


def unknown_name(kind: str, name: str, names: Sequence[str]) -> InputError:
    """The error for a name nobody registered: says which names exist, the likeliest first.

    Args:
        kind: what is looked up, e.g. "reward".
        name: what the user wrote.
        names: those that would have worked; may be empty.
    """
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(sorted(names)) if names else "none"
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {listing}.")
