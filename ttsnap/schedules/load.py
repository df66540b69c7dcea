"""A schedule from its written form, a JSON file or its name; plain and fitted schedules alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.errors import InputError, unknown_name
from ttsnap.assets import INDEX as INDEX_FILE
from ttsnap.assets import LOOKAHEAD, NAMES, SCHEDULE, shipped
from ttsnap.schedules.fitted_schedule import SCHEMA, Entry, Expected, FittedSchedule
from ttsnap.schedules.index_book import KIND as INDEX
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.pruning_schedule import PruningSchedule


def read_fitted(content: Mapping[str, Any]) -> PruningSchedule:
    """The schedule in a file's content; a plain one when it holds nothing but steps and shares.

    Raises:
        InputError: a newer schema.
        KeyError, TypeError, ValueError: another content.
    """
    own = _plain(content)
    if "entries" not in content:
        return own
    if content["schema"] > SCHEMA:
        raise InputError(f"This schedule has schema {content['schema']}, newer than {SCHEMA}; update diffkit.")
    entries = tuple(
        Entry(float(entry["budget"]), float(entry["equivalent"]), int(entry["candidates"]), _plain(entry))
        for entry in content["entries"]
    )
    if any(min(entry[:3]) <= 0 for entry in entries):
        raise InputError("The budgets and numbers of candidates of a fitted schedule must be positive.")
    return FittedSchedule(
        own.steps, own.keep, entries, int(content["calls"]),
        tuple(Expected(**{name: float(row[name]) for name in Expected._fields}) for row in content["expected"]),
        content["gain"], content["low"], content["high"], str(content["reason"]), dict(content["info"]),
        lookahead=own.lookahead,
    )  # fmt: skip


def _plain(content: Mapping[str, Any]) -> PruningSchedule:
    """Steps and shares, and lookaheads where there are any."""
    return PruningSchedule(
        tuple(content["steps"]), tuple(content["keep"]), lookahead=tuple(content.get("lookahead", ()))
    )


def load_schedule(text: str | Path | PruningSchedule | None) -> PruningSchedule:
    """A schedule as it is, from its written form, from a JSON file or by its name; None is best-of-N.

    The names are those of the schedules in the package: ``lab`` was fitted on the lab's own rewards, ``lab-lookahead``
    on those of images ahead too, and likewise for ``lab-trio``.

    Raises:
        InputError: it is none of these.

    Example:
        >>> load_schedule("2:0.4,6:0.5").survivors(20), str(load_schedule("lab").resolve(20, equivalent=4.0)) != ""
        ([8, 4], True)
    """
    if text is None:
        return PruningSchedule()
    if isinstance(text, PruningSchedule):
        return text
    if isinstance(text, Path) or (isinstance(text, str) and text.endswith(".json")):
        return _read(text)
    if isinstance(text, str):
        return PruningSchedule.parse(text) if not text.strip().replace("-", "_").isidentifier() else _shipped(text)
    raise InputError(f"Expected a PruningSchedule, '2:0.4,6:0.4' or the path of a JSON file, got {text!r}.")


def load_schedule_or_index(text: str | Path | PruningSchedule | IndexBook | None) -> PruningSchedule | IndexBook:
    """The same, or an index rule as it is or from the file that ``fit --rule index`` wrote.

    Raises:
        InputError: it is none of these.

    Example:
        >>> load_schedule_or_index("2:0.4,6:0.5").steps
        (2, 6)
    """
    if isinstance(text, IndexBook):
        return text
    named = isinstance(text, Path) or (isinstance(text, str) and text.endswith(".json"))
    return IndexBook.from_json(str(text)) if named and _kind(str(text)) == INDEX else load_schedule(text)


def load_index(text: str | Path | IndexBook) -> IndexBook:
    """An index rule as it is, from the file that ``fit --rule index`` wrote, or by its name.

    The names are those of the rules in the package: ``lab`` and ``lab-trio`` were fitted on the labs' noise-aware
    rewards.

    Raises:
        InputError: it is none of these.

    Example:
        >>> load_index("lab").model.calls
        20
    """
    return text if isinstance(text, IndexBook) else IndexBook.from_json(index_path(text))


def index_path(text: str | Path) -> Path:
    """The file of an index rule: of one in the package by its name, else the path itself.

    Example:
        >>> index_path("lab").name, index_path("runs/index.json").parent.name
        ('index.json', 'runs')
    """
    name = str(text).strip()
    return shipped(name, INDEX_FILE) if name in NAMES else Path(text)


def _kind(path: str) -> str | None:
    """What the file says it holds; None where it does not say, or is not readable."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(content["kind"]) if isinstance(content, dict) and "kind" in content else None


def _shipped(name: str) -> PruningSchedule:
    parts = dict.fromkeys(NAMES, SCHEDULE) | {f"{name}-lookahead": LOOKAHEAD for name in NAMES}
    part = parts.get(name.strip())
    if part is None:
        raise unknown_name("schedule", name, list(parts))
    return _read(shipped(name.strip().removesuffix("-lookahead"), part))


def _read(path: str | Path) -> PruningSchedule:
    """A file with ``{"steps": [...], "keep": [...]}``, perhaps with ``"lookahead"``, or one that fit wrote."""
    if _kind(str(path)) == INDEX:
        raise InputError(f"{str(path)!r} holds an index rule, no schedule of looks; simulate takes it as a schedule, "
                         "searches as index, with the search adaptive, index or index-mean.")  # fmt: skip
    try:
        return read_fitted(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot read a schedule from {str(path)!r}: {type(error).__name__}: {error}.") from error
