"""The progress bar of a search: diffusers' own on a terminal and in a notebook, a whole line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from diffkit.console import PLAIN_INTERVAL
from diffkit.families import Pipeline

__all__ = ["search_bar"]


class _Lines:
    """What a bar draws over and over becomes a line each time, in a file or a pipe."""

    encoding = "utf-8"

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, ""

    def write(self, text: str) -> int:
        drawn = text.replace("\r", "").strip()
        counted = drawn.split(" [")[0]  # without the times
        if not drawn or counted == self._last:
            return 0
        self._last = counted
        return self._file.write(drawn + "\n")

    def flush(self) -> None:
        self._file.flush()


class SearchBar:
    """A bar, with how much is to be done known late.

    Args:
        bar: tqdm's.
        lines: whether it is shown as lines.
    """

    def __init__(self, bar: Any, *, lines: bool) -> None:
        self._bar, self._lines = bar, lines

    def advance(self, calls: int) -> None:
        """Count so many calls more; fewer where some were in vain."""
        self._bar.update(calls)

    def expect(self, calls: int) -> None:
        """Say how many calls there will be."""
        self._bar.total = calls
        if not self._lines:
            self._bar.refresh()


@contextmanager
def search_bar(pipe: Pipeline, total: int) -> Iterator[SearchBar]:
    """The bar of a search, as ``pipe.set_progress_bar_config`` says.

    Where it is written into a file or a pipe it is a line about every ten seconds, and none in a search that is over
    before; ``mininterval`` and ``delay`` of the configuration change that.

    Args:
        total: calls of the denoiser; 0 where it is not known yet.
    """
    missing = object()
    own = vars(pipe).get("_progress_bar_config", missing)
    settings = dict(own) if isinstance(own, dict) else {}
    file = settings.get("file") or sys.stderr
    lines = not getattr(file, "isatty", lambda: False)() and "ipykernel" not in sys.modules
    if lines:
        pace = {} if "mininterval" in settings else {"mininterval": PLAIN_INTERVAL, "delay": PLAIN_INTERVAL}
        settings = {**pace, **settings, "file": _Lines(file)}
    pipe._progress_bar_config = settings
    try:
        bar = pipe.progress_bar(total=total)
    finally:
        if own is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = own
    with bar:
        yield SearchBar(bar, lines=lines)
