"""The values that commands read from the text of their options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffkit.errors import InputError

__all__ = ["needed_folder", "read_names", "read_numbers", "read_size"]

N = TypeVar("N", int, float)


def read_names(text: str) -> tuple[str, ...]:
    """The names in text such as ``nemo, wanda``; empty ones are left out.

    Example:
        >>> read_names("nemo, wanda,")
        ('nemo', 'wanda')
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def read_numbers(text: str, kind: Callable[[str], N], expected: str) -> tuple[N, ...]:
    """The numbers in text such as ``0,1,10``, as int or as float.

    Example:
        >>> read_numbers("0,1,10", int, "budgets such as 0,1,10")
        (0, 1, 10)

    Raises:
        InputError: a part is no such number; `expected` says in the message what would have been.
    """
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"Expected {expected}, got {text!r}.") from None


def read_size(text: str) -> tuple[int, int]:
    """Height and width from text such as ``512x768``.

    Example:
        >>> read_size("512x768")
        (512, 768)

    Raises:
        InputError: it is no size.
    """
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise InputError(f"Expected a size such as 512x768 (height x width), got {text!r}.") from None
    return height, width


def needed_folder(out: Path | None, work: str, example: str) -> Path:
    """The folder of ``--out``, for work that needs one.

    Raises:
        InputError: there is none.
    """
    if out is None:
        raise InputError(f"{work} needs a folder for its results: add --out {example}.")
    return out
