"""Tables as files for other programs: CSV that a spreadsheet may open, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

__all__ = ["Column", "Kind", "Value", "csv_text", "guarded", "parquet_bytes"]

#: What a spreadsheet takes for the beginning of a formula (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r")

Kind = Literal["text", "number", "count", "flag"]
Value = str | float | int | bool | None


class Column(NamedTuple):
    """A column: its name, and whether it holds text, numbers, whole numbers, or true and false."""

    name: str
    kind: Kind = "text"


def guarded(text: str) -> str:
    """A text that a spreadsheet does not run: one that begins like a formula gets an apostrophe before it.

    Example:
        >>> guarded("=HYPERLINK(A1)"), guarded("a cat")
        ("'=HYPERLINK(A1)", 'a cat')
    """
    return f"'{text}" if text.startswith(FORMULA) else text


def csv_text(columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> str:
    r"""Rows as CSV (RFC 4180): unknown is empty, numbers stay numbers.

    Args:
        columns: of the table.
        rows: a value for each column; texts are :func:`guarded`.

    Raises:
        ValueError: a row of another length.

    Example:
        >>> csv_text([Column("id"), Column("p", "number")], [["-1", -1.0], ["b", None]])
        "id,p\r\n'-1,-1.0\r\nb,\r\n"
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([guarded(column.name) for column in columns])
    for row in rows:
        writer.writerow([_cell(value) for _, value in zip(columns, row, strict=True)])
    return buffer.getvalue()


def _cell(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return guarded(value)
    return "" if value is None else repr(value)


def parquet_bytes(columns: Sequence[Column], rows: Iterable[Sequence[Value]]) -> bytes | None:
    """The same table as Parquet, texts as they are and unknown as null; None where pyarrow is not installed.

    Args:
        columns: of the table.
        rows: a value for each column.

    Raises:
        ValueError: a row of another length.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return None
    types = {
        "text": pyarrow.string(), "number": pyarrow.float64(), "count": pyarrow.int64(), "flag": pyarrow.bool_(),
    }  # fmt: skip
    values: list[list[Value]] = [[] for _ in columns]
    for row in rows:
        for column, value in zip(values, row, strict=True):
            column.append(value)
    arrays = [pyarrow.array(column, types[kind]) for column, (_, kind) in zip(values, columns, strict=True)]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays, names=[column.name for column in columns]), buffer)
    return buffer.getvalue()
