"""What a list of suspects consists of: its rows as they stand in a file, and the suspects made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

__all__ = ["Row", "RowError", "Rows", "Suspect", "writable"]


@dataclass(frozen=True)
class Suspect:
    """One caption under suspicion.

    Attributes:
        id: unique within its source: its `id` column, else the first image's name, else its row.
        caption: exactly as written.
        images: files of the training images it may reproduce; may be empty, since detection needs only captions.
        kind: the label of a published list ("VM" verbatim, "TM" template; MV and TV are the same), or any other.
        extra: the remaining columns as text, e.g. `url`. A column `index` means different things in different lists
            and is never used to join them.
    """

    id: str
    caption: str
    images: tuple[Path, ...] = ()
    kind: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def writable(text: str) -> str:
    """Text that can be written as UTF-8, with half characters and bytes of other encodings as escapes.

    Example:
        >>> writable("cat " + chr(0xD83D))
        'cat \\\\ud83d'
    """
    return text.encode(errors="backslashreplace").decode()


class RowError(NamedTuple):
    """A row that could not be used. `row` counts from 1 as an editor or a spreadsheet shows it, header included."""

    source: str
    row: int
    reason: str


class Row(NamedTuple):
    """A row as it stands in its source.

    Attributes:
        source: the file or folder; the row's image paths are relative to that folder, or to the file's.
        number: counts from 1.
        values: column names and values.
        name: the id of a row without one; None = its first image's name, else its number.
    """

    source: Path
    number: int
    values: Mapping[str, object]
    name: str | None = None

    @property
    def folder(self) -> Path:
        """Where its image paths begin."""
        return self.source if self.source.is_dir() else self.source.parent


class Rows(NamedTuple):
    """The rows of a source, and those that could not be read."""

    rows: list[Row]
    errors: list[RowError]
