"""What the user sees: progress and messages on stderr, results on stdout. No colour where nobody looks."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "Bar",
    "format_table",
    "get_console",
    "is_quiet",
    "launched_as",
    "progress",
    "say",
    "write_json",
    "write_table",
]

PLAIN_INTERVAL = 10.0  # seconds between two lines of progress where stderr is a file or a pipe
PIPED_WIDTH = 200  # columns of a table nobody's terminal limits


class Bar(Protocol):
    """Progress of one task, as `progress` hands it out."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more as finished."""

    def describe(self, text: str) -> None:
        """Change the words in front of the bar."""


def launched_as() -> int:
    """This process's number among those of a launch (torchrun, accelerate, MPI), as the launcher told it; 0 if none."""
    own = "RANK" if "LOCAL_RANK" in os.environ else ""
    for name in (own, "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"):
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


def is_quiet() -> bool:
    """Whether progress and remarks are switched off: by ``DIFFKIT_QUIET=1``, and on all but a launch's first process.

    Errors are shown all the same.
    """
    return launched_as() > 0 or os.environ.get("DIFFKIT_QUIET", "") not in ("", "0")


def get_console() -> Console:
    """A rich console on the present stderr. It writes no colour where stderr is not a terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line on stderr, wrapped by nobody and read as plain text (no markup); silent when quiet."""
    if not is_quiet():
        get_console().print(message, markup=False, soft_wrap=True)


class _SilentBar:
    def advance(self, steps: int = 1) -> None:
        """Nothing is shown."""

    def describe(self, text: str) -> None:
        """Nothing is shown."""


class _PlainBar:
    """A line now and then, for logs: count, share, time left."""

    def __init__(self, description: str, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.description = description
        self.total = total
        self.count = 0
        self._clock = clock
        self._start = self._last = clock()

    def advance(self, steps: int = 1) -> None:
        self.count += steps
        now = self._clock()
        if now - self._last >= PLAIN_INTERVAL:
            self._last = now
            print(self.line(now), file=sys.stderr, flush=True)

    def describe(self, text: str) -> None:
        self.description = text

    def line(self, now: float) -> str:
        """The line for the moment `now` (seconds of the clock)."""
        if self.total is None:
            return f"{self.description}: {self.count} done, {_duration(now - self._start)} so far"
        left = (now - self._start) / max(self.count, 1) * max(self.total - self.count, 0)
        return f"{self.description}: {self.count} of {self.total}, about {_duration(left)} left"


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Bar]:
    """Progress of a task on stderr, with the time left where `total` is known.

    A moving bar on a terminal, a plain line about every ten seconds elsewhere, nothing when quiet.

    Example:
        with progress("generating", total=len(items)) as bar:
            for item in items:
                ...
                bar.advance()
    """
    if is_quiet():
        yield _SilentBar()
    elif not sys.stderr.isatty():
        yield _PlainBar(description, total)
    else:
        with _rich_bar(description, total) as bar:
            yield bar


@contextmanager
def _rich_bar(description: str, total: int | None) -> Iterator[Bar]:
    from rich import progress as rich_progress
    from rich.markup import escape

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=get_console(), transient=True) as display:
        task = display.add_task(escape(description), total=total)

        class RichBar:
            def advance(self, steps: int = 1) -> None:
                display.advance(task, steps)

            def describe(self, text: str) -> None:
                display.update(task, description=escape(text))

        yield RichBar()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def write_json(value: Mapping[str, object] | Sequence[object]) -> None:
    """The result on stdout as JSON, once for all processes. NaN and infinity are refused: what is unknown is null."""
    if launched_as() == 0:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """The result on stdout as a table, once for all processes; cells are plain text, None reads as a dash."""
    if launched_as() > 0:
        return
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print(_table(headers, rows, title))


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> str:
    """The table of :func:`write_table` as plain text.

    Example:
        >>> print(format_table(["seed", "reward"], [[7, "0.51"], [8, None]]))
          seed   reward
         ───────────────
          7      0.51
          8      –
    """
    from rich.console import Console

    buffer = io.StringIO()
    console = Console(file=buffer, highlight=False, width=PIPED_WIDTH, color_system=None, force_jupyter=False)
    console.print(_table(headers, rows, title))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines() if line.strip())


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]], title: str | None) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for header in headers:
        table.add_column(header)
    for row in rows:
        table.add_row(*(Text("–" if cell is None else str(cell)) for cell in row))
    return table
