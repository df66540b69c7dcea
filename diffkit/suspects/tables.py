"""Rows of a table: fields between commas, semicolons or tabs, with CSV quoting or without.

Captions are taken as they stand, so a quote is markup only in a table that is quoted throughout: where each field that
begins with a quote also ends with one, as a CSV writer leaves it. Tables of prompts often are not (``"OPEN" painted on
a door``): those are read raw, a line a row. In a quoted table, a line that breaks the rule is a row in error, and no
quote left open swallows the lines after it.
"""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.suspects.columns import CAPTION_NAMES, READ_NAMES
from diffkit.suspects.decoding import read_text
from diffkit.suspects.record import Row, RowError, Rows

__all__ = ["read_table"]

DELIMITERS = ",;\t"
LONGEST_RECORD = 100  # lines of one quoted field; a longer one is a quote that was left open


class _Record(NamedTuple):
    """A record: its number as a spreadsheet counts, blank lines too, its fields, and the lines that it stands in.

    One that breaks the quoting has a reason and no fields.
    """

    number: int
    fields: list[str]
    reason: str | None
    lines: slice


class _Table(NamedTuple):
    delimiter: str
    header: list[str]
    records: list[_Record]

    @classmethod
    def of(cls, delimiter: str, records: Sequence[_Record]) -> _Table:
        return cls(delimiter, records[0].fields if records else [], list(records[1:]))

    @property
    def has_captions(self) -> bool:
        return any(_name(field) in CAPTION_NAMES for field in self.header)

    def fits(self, record: _Record) -> bool:
        return record.reason is None and len(record.fields) == len(self.header)

    @property
    def plausibility(self) -> tuple[bool, float, int]:
        """A caption column, the share of records as long as the header, the number of columns."""
        fitting = sum(self.fits(record) for record in self.records) / max(len(self.records), 1)
        return self.has_captions, fitting, len(self.header)


def read_table(path: Path) -> Rows:
    """Rows of a .csv or .tsv file: the delimiter and the quoting that fit it best.

    Raises:
        InputError: no caption column, a column name that occurs twice, or a file that is not text.
    """
    lines = read_text(path).split("\n")
    table = max((_read(lines, delimiter) for delimiter in DELIMITERS), key=lambda table: table.plausibility)
    if not table.has_captions:
        columns = ", ".join(repr(name) for name in table.header) or "nothing"
        raise InputError(f"{path} has no caption column: found {columns}; expected one of {', '.join(CAPTION_NAMES)}.")
    _refuse_repeated_columns(path, table.header)
    rows, errors = [], []
    for record in table.records:
        reason = record.reason or _misfit(table, record)
        if reason is not None:
            errors.append(RowError(str(path), record.number, reason))
        elif len(table.header) > 1 and _could_be_rows(record, table, lines):
            reason = f"lines {record.lines.start + 1} to {record.lines.stop} are one quoted field, or rows of their own"
            errors += [RowError(str(path), record.number, reason) for _ in lines[record.lines]]
        else:
            rows.append(Row(path, record.number, dict(zip(table.header, record.fields, strict=True))))
    return Rows(rows, errors)


def _misfit(table: _Table, record: _Record) -> str | None:
    if len(record.fields) != len(table.header):
        first, last = record.lines.start + 1, record.lines.stop
        lines = f" in lines {first} to {last}" if last > first else ""
        return f"expected {len(table.header)} fields, got {len(record.fields)}{lines}"
    if record.fields == table.header:
        return "repeats the header"
    return None


def _refuse_repeated_columns(path: Path, header: Sequence[str]) -> None:
    counts = Counter(_name(field) for field in header)
    repeated = next((name for name, count in counts.items() if count > 1 and name in READ_NAMES), None)
    if repeated is not None:
        raise InputError(f"{path} has two columns {repeated!r}; rename one of them.")


def _name(field: str) -> str:
    return field.strip().lower()


def _read(lines: Sequence[str], delimiter: str) -> _Table:
    raw = _Table.of(
        delimiter,
        [
            _Record(number, line.removesuffix("\r").split(delimiter), None, slice(number - 1, number))
            for number, line in enumerate(lines, 1)
            if line.strip()
        ],
    )
    quoted = _Table.of(delimiter, list(_quoted_records(lines, delimiter)))
    return quoted if _is_quoted_throughout(quoted, raw, lines) else raw


def _quoted_records(lines: Sequence[str], delimiter: str) -> Iterator[_Record]:
    """Records with CSV quoting; where a line breaks it, a record with a reason, and the next line is read anew."""
    start = 0
    for number in itertools.count(1):
        if start >= len(lines):
            return
        consumed, fields, reason = 1, [], None
        if lines[start].strip():
            ahead = lines[start : start + LONGEST_RECORD]
            reader = csv.reader((f"{line}\n" for line in ahead), delimiter=delimiter, strict=True)
            try:
                fields = next(reader)
                consumed = reader.line_num
            except csv.Error:
                reason = "a quote is left open, or text follows it: quote the whole field or nothing"
            yield _Record(number, fields, reason, slice(start, start + consumed))
        start += consumed


def _is_quoted_throughout(quoted: _Table, raw: _Table, lines: Sequence[str]) -> bool:
    """Whether the quotes are a writer's, not the captions' own.

    Quoted fields between commas or semicolons are, as long as no line breaks the quoting or could be read both ways.
    Otherwise, and between tabs, which need no quotes, the table has to show it: by a field that could not stand without
    its quotes, or by a column that is quoted in most rows.
    """
    doubtful = any(record.reason or _could_be_rows(record, quoted, lines) for record in quoted.records)
    if quoted.delimiter != "\t" and not doubtful:
        return True
    return _has_quoted_column(raw) or any(_needs_quotes(record, quoted, lines) for record in quoted.records)


def _could_be_rows(record: _Record, table: _Table, lines: Sequence[str]) -> bool:
    """Whether a field spans lines each of which is as long as the header by itself."""
    written = lines[record.lines]
    return len(written) > 1 and all(line.count(table.delimiter) + 1 == len(table.header) for line in written)


def _needs_quotes(record: _Record, table: _Table, lines: Sequence[str]) -> bool:
    """Whether some field holds a delimiter, a doubled quote, or lines that are no rows of the table by themselves."""
    if record.reason is not None:
        return False
    written = lines[record.lines]
    if len(written) > 1:
        return not _could_be_rows(record, table, lines)
    doubled = ('"' + field.replace('"', '""') + '"' for field in record.fields if '"' in field)
    return any(table.delimiter in field for field in record.fields) or any(form in written[0] for form in doubled)


def _has_quoted_column(raw: _Table) -> bool:
    rows = [record.fields for record in raw.records if raw.fits(record)]
    wrapped = (
        sum(len(field) > 1 and field[0] == field[-1] == '"' for field in column) for column in zip(*rows, strict=True)
    )
    return any(count > len(rows) / 2 for count in wrapped)
