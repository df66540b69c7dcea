"""Command lines of tests: a common part, and what one test changes in it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["changed_line"]


def changed_line(line: Sequence[str], *more: str) -> list[str]:
    """The line with ``more`` at its end, without the values of options that ``more`` gives anew."""
    words, kept = iter(line), []
    for word in words:
        if word.startswith("--") and word in more:
            next(words)
        else:
            kept.append(word)
    return [*kept, *more]
