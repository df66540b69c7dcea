"""What a command's exit code says; every command exits with one of these."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAIL_ON = 1
    """Done, and what ``--fail-on`` names occurred."""
    INPUT = 2
    """Wrong usage or input; nothing was run."""
    ITEMS = 3
    """Done, but some items could not be read or scored."""
    FAILURE = 70
    """The machine or a bug stopped the command."""
    INTERRUPTED = 130
    """Ctrl-C."""
