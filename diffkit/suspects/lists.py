"""Rows of JSON files, JSON lines and plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffkit.errors import InputError
from diffkit.suspects.columns import CAPTION_NAMES
from diffkit.suspects.decoding import read_text
from diffkit.suspects.record import Row, RowError, Rows

__all__ = ["read_json", "read_jsonl", "read_lines"]


def read_jsonl(path: Path) -> Rows:
    """A row a line: an object, or a caption in quotes.

    Raises:
        InputError: no object has a caption, or the file is not text.
    """
    rows, errors = list[Row](), list[RowError]()
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            errors.append(RowError(str(path), number, f"no JSON: {error}"))
        else:
            _place(path, number, value, rows, errors)
    _require_captions(path, rows)
    return Rows(rows, errors)


def read_json(path: Path) -> Rows:
    """A row for each entry of a list: an object, or a caption.

    Raises:
        InputError: it is no list, no object has a caption, or the file is not text.
    """
    text = read_text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Cannot read {path} as JSON: {error}.") from error
    if not isinstance(values, list):
        raise InputError(f"{path} must be a JSON list of captions or of objects with a caption; one a line is .jsonl.")
    rows, errors = list[Row](), list[RowError]()
    for number, value in enumerate(values, start=1):
        _place(path, number, value, rows, errors)
    _require_captions(path, rows)
    return Rows(rows, errors)


def read_lines(path: Path) -> Rows:
    """A caption a line.

    Raises:
        InputError: the first line is the header of a table, or the file is not text.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    header = next((line for line in lines if line.strip()), "")
    fields = [field.strip().lower() for field in header.split("\t")]
    if len(fields) > 1 and set(fields) & set(CAPTION_NAMES):
        raise InputError(f"{path} begins with the header of a table, {header!r}; name it .tsv.")
    rows = [Row(path, number, {"caption": line}) for number, line in enumerate(lines, start=1) if line.strip()]
    if len(rows) > 1 and header.strip().lower() in CAPTION_NAMES:
        reason = f"{header.strip()!r} is a column name, not a caption: remove it, or name the file .csv"
        return Rows(rows[1:], [RowError(str(path), rows[0].number, reason)])
    return Rows(rows, [])


def _place(path: Path, number: int, value: object, rows: list[Row], errors: list[RowError]) -> None:
    """Add the value to the rows or to the errors."""
    if isinstance(value, dict):
        rows.append(Row(path, number, value))
    elif isinstance(value, str):
        rows.append(Row(path, number, {"caption": value}))
    else:
        errors.append(RowError(str(path), number, f"expected an object or a caption, got {json.dumps(value)[:60]}"))


def _require_captions(path: Path, rows: Sequence[Row]) -> None:
    if rows and not any(_has_caption(row.values) for row in rows):
        columns = ", ".join(repr(name) for name in rows[0].values)
        raise InputError(f"{path} has no caption: found {columns}; expected one of {', '.join(CAPTION_NAMES)}.")


def _has_caption(values: Mapping[str, object]) -> bool:
    return any(name.strip().lower() in CAPTION_NAMES for name in values)
