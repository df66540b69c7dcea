"""Read suspects: find the reader of a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffkit.errors import InputError
from diffkit.lab.assets import pictures_path
from diffkit.suspects.columns import suspects_of_rows
from diffkit.suspects.folders import read_folder
from diffkit.suspects.lists import read_json, read_jsonl, read_lines
from diffkit.suspects.parquet import TABLE_SUFFIXES, read_parquet
from diffkit.suspects.record import RowError, Rows, Suspect
from diffkit.suspects.tables import read_table
from diffkit.suspects.webdataset import is_shard, read_webdataset

__all__ = ["read_suspects"]

READERS: dict[str, Callable[[Path], Rows]] = {
    ".csv": read_table,
    ".tsv": read_table,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".txt": read_lines,
    "": read_lines,
}


def read_suspects(source: str | Path, *, images: bool = True) -> tuple[list[Suspect], list[RowError]]:
    """Read suspects from ``lab:planted``, ``lab:controls``, a folder, a list, or an archive.

    ``gallery:planted``, ``gallery:controls`` and ``gallery:claims`` are drawn at first use, into the user's cache.
    Lists are .csv, .tsv, .json, .jsonl, .txt and .parquet; archives are webdataset shards, .tar.

    A folder holds `metadata.jsonl` or `metadata.csv` with a `file_name` column, or images each with a .txt or .caption
    of the same name, a caption a line. Image paths are relative to the file that names them; several are a JSON list or
    separated by ; or |. A row with several captions gives a suspect each. What is read of each form stands in
    docs/formats.md.

    Args:
        source: of the suspects.
        images: whether the images that a list names are looked up; prompts need none.

    Returns:
        The good rows in order, and the bad ones with their reasons.

    Raises:
        InputError: the source as a whole cannot be read: no such file, no caption column, nothing in it.

    Example:
        >>> suspects, errors = read_suspects("lab:planted")
        >>> len(suspects), len(errors)
        (24, 0)
        >>> suspects[0].id, suspects[0].caption, suspects[0].images[0].name
        ('portrait', 'official portrait of astronaut eileen collins', 'portrait.png')
    """
    path = pictures_path(source) or Path(source).expanduser()
    if not path.exists():
        raise InputError(f"There is no file or folder {path}. Expected lab:planted, a folder, a .csv or a .jsonl.")
    rows, errors = _rows(path, images)
    suspects, row_errors = suspects_of_rows(rows, images=images)
    if not suspects and not errors and not row_errors:
        raise InputError(f"{path} holds no suspects: no row with a caption was found.")
    return suspects, sorted([*errors, *row_errors], key=lambda error: (error.source, error.row))


def _rows(path: Path, images: bool) -> Rows:
    if path.is_dir():
        return read_folder(path, images=images)
    if is_shard(path):
        return read_webdataset(path, images=images)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return read_parquet(path, images=images)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(filter(None, (*READERS, *TABLE_SUFFIXES, ".tar")))
        raise InputError(f"{path} is of no known kind. Expected a folder, {known}.")
    return reader(path)
