"""What every block of figures needs: read a file of figures, write a share, a count, a difference, a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "figures"
MISSING = "Not measured yet."


def read(name: str) -> dict[str, Any] | None:
    """One file of figures, None when it was not made."""
    path = FIGURES / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def share(value: Mapping[str, Any], key: str = "rate") -> str:
    """A share in per cent with n and its interval."""
    return f"{100 * value[key]:.0f} % (n = {value['n']}, {100 * value['low']:.0f} to {100 * value['high']:.0f})"


def of(value: Mapping[str, Any]) -> str:
    """k of n and the share's interval."""
    return f"{value['k']} of {value['n']} ({100 * value['low']:.0f} to {100 * value['high']:.0f} %)"


def counted(rate: Mapping[str, Any]) -> str:
    """:func:`of` for a rate as summaries have it."""
    low, high = rate["interval"]
    return of({"k": rate["count"], "n": rate["n"], "low": low, "high": high})


def points(value: Mapping[str, Any]) -> str:
    """A change of a share in percentage points."""
    return f"{100 * value['mean']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"


def gain(value: Mapping[str, Any] | None, digits: int = 3) -> str:
    """A difference with its interval."""
    if value is None:
        return "–"
    return f"{value['mean']:+.{digits}f} ({value['low']:+.{digits}f} to {value['high']:+.{digits}f})"


def table(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
