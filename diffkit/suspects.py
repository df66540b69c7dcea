"""Suspects from files: captions, with the local images they may have been memorized from.

Understood are the formats in which such lists are published (NeMo, Wen et al., MemBench, SAIL, Webster) and those
people have: a folder of images with captions, a CSV with comma, semicolon or tab, JSON lines, a caption a line.
Captions are taken as they stand: markup, doubled quotes and blanks are part of what a model was trained on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.images import IMAGE_SUFFIXES

__all__ = ["RowError", "Suspect", "read_suspects"]

CAPTION_NAMES = ("caption", "prompt", "text")
IMAGE_NAMES = ("images", "image", "gt_images", "file_name")
KIND_NAMES = ("type", "overfit_type", "kind")
SAME_KIND = {"MV": "VM", "TV": "TM"}  # Webster's words for NeMo's verbatim and template memories
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


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


class RowError(NamedTuple):
    """A row that could not be used. `row` counts from 1 as an editor or a spreadsheet shows it, header included."""

    source: str
    row: int
    reason: str


class _Row(NamedTuple):
    number: int
    values: Mapping[str, object]


def read_suspects(source: str | Path) -> tuple[list[Suspect], list[RowError]]:
    """Read suspects from ``lab:planted``, ``lab:controls``, a folder, or a .csv, .tsv, .jsonl or .txt file.

    A folder holds `metadata.jsonl` or `metadata.csv` with a `file_name` column, or images each with a .txt of the same
    name. Image paths are relative to the file that names them; several are a JSON list or separated by ; or |.

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
    if isinstance(source, str) and source.startswith("lab:"):
        from diffkit.lab.assets import photographs_path

        path = photographs_path(source.removeprefix("lab:"))
    else:
        path = Path(source)
    if not path.exists():
        raise InputError(f"There is no file or folder {path}. Expected lab:planted, a folder, a .csv or a .jsonl.")
    if path.is_dir():
        listed = next((path / name for name in METADATA_NAMES if (path / name).is_file()), None)
        if listed is None:
            return _collect(path, *_rows_of_pairs(path))
        path = listed
    readers = {".csv": _rows_of_csv, ".tsv": _rows_of_csv, ".jsonl": _rows_of_jsonl, ".txt": _rows_of_text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is of no known kind. Expected a folder, .csv, .tsv, .jsonl or .txt.")
    return _collect(path, *reader(path))


def _collect(path: Path, rows: Iterable[_Row], errors: list[RowError]) -> tuple[list[Suspect], list[RowError]]:
    base = path if path.is_dir() else path.parent
    suspects: list[Suspect] = []
    taken: set[str] = set()
    for row in rows:
        try:
            suspect = _suspect(row, base, taken)
        except ValueError as error:
            errors.append(RowError(str(path), row.number, str(error)))
        else:
            taken.add(suspect.id)
            suspects.append(suspect)
    if not suspects and not errors:
        raise InputError(f"{path} holds no suspects: no row with a caption was found.")
    return suspects, sorted(errors, key=lambda error: error.row)


def _suspect(row: _Row, base: Path, taken: set[str]) -> Suspect:
    values = dict(row.values)
    caption = _take(values, CAPTION_NAMES)
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("the caption is missing" if caption in (None, "") else f"no caption: {caption!r}")
    images = tuple(_image_files(_take(values, IMAGE_NAMES), base))
    kind = _text(_take(values, KIND_NAMES)) or None
    given = _text(_take(values, ("id",)))
    if given in taken:
        raise ValueError(f"the id {given!r} stands in an earlier row")
    identity = given or (images[0].stem if images else f"row-{row.number}")
    while identity in taken:
        identity = f"{identity}-row-{row.number}"
    extra = {name: _text(value) for name, value in values.items() if name}
    return Suspect(identity, caption, images, SAME_KIND.get(kind, kind) if kind else None, extra)


def _take(values: dict[str, object], names: Iterable[str]) -> object:
    """Remove and return the first column of these names, whatever their capitals."""
    for column in names:
        for name in values:
            if name.strip().lower() == column:
                return values.pop(name)
    return None


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _image_files(value: object, base: Path) -> Iterator[Path]:
    for name in _image_names(value, base):
        path = base / name
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"the folder {path} holds no image")
            yield from inside
        elif path.is_file():
            yield path
        elif "://" in name:
            raise ValueError(f"{name} is an address; save the image and give its path (nothing is downloaded)")
        else:
            raise ValueError(f"there is no image {path}")


def _image_names(value: object, base: Path) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"the list of images is no JSON: {value!r}") from None
    if isinstance(value, list):
        if not all(isinstance(name, str) and name for name in value):
            raise ValueError(f"expected paths of images, got {value!r}")
        return value
    if value is None or value == "":
        return []
    if not isinstance(value, str):
        raise ValueError(f"expected the path of an image, got {value!r}")
    if (base / value).exists():  # a name may hold a separator
        return [value]
    return [name.strip() for name in value.replace("|", ";").split(";") if name.strip()]


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _rows_of_csv(path: Path) -> tuple[list[_Row], list[RowError]]:
    text = _decoded(path)
    tables = {}
    for delimiter in ",;\t":
        try:
            tables[delimiter] = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise InputError(f"{path} is no CSV: {error}.") from error
    table = max(tables.values(), key=_plausibility)
    if not table or not any(name.strip().lower() in CAPTION_NAMES for name in table[0]):
        columns = ", ".join(repr(name) for name in table[0]) if table else "nothing"
        raise InputError(f"{path} has no caption column: found {columns}; expected one of {', '.join(CAPTION_NAMES)}.")
    header, rows, errors = table[0], [], []
    for number, cells in enumerate(table[1:], start=2):
        if not cells:
            continue
        if len(cells) == len(header):
            rows.append(_Row(number, dict(zip(header, cells, strict=True))))
        else:
            errors.append(RowError(str(path), number, f"expected {len(header)} fields, got {len(cells)}"))
    return rows, errors


def _plausibility(table: list[list[str]]) -> tuple[bool, float, int]:
    """How well a delimiter fits: a caption column, the share of rows as long as the header, the number of columns."""
    if not table:
        return False, 0.0, 0
    has_caption = any(name.strip().lower() in CAPTION_NAMES for name in table[0])
    rows = [row for row in table[1:] if row]
    fitting = sum(len(row) == len(table[0]) for row in rows) / max(len(rows), 1)
    return has_caption, fitting, len(table[0])


def _rows_of_jsonl(path: Path) -> tuple[list[_Row], list[RowError]]:
    rows, errors = [], []
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            errors.append(RowError(str(path), number, f"no JSON: {error}"))
            continue
        if isinstance(value, dict):
            rows.append(_Row(number, value))
        else:
            errors.append(RowError(str(path), number, f"expected an object, got {line.strip()[:60]}"))
    if rows and not any(name.strip().lower() in CAPTION_NAMES for row in rows for name in row.values):
        columns = ", ".join(repr(name) for name in rows[0].values)
        raise InputError(f"{path} has no caption: found {columns}; expected one of {', '.join(CAPTION_NAMES)}.")
    return rows, errors


def _rows_of_text(path: Path) -> tuple[list[_Row], list[RowError]]:
    lines = _decoded(path).split("\n")
    return [_Row(number, {"caption": line.rstrip("\r")}) for number, line in enumerate(lines, 1) if line.strip()], []


def _rows_of_pairs(folder: Path) -> tuple[list[_Row], list[RowError]]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    images = {path.stem: path for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    texts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    if not images:
        raise InputError(f"{folder} holds no images and no {' or '.join(METADATA_NAMES)}.")
    rows, errors = [], []
    for number, stem in enumerate(sorted({*images, *texts}), start=1):
        if stem not in texts:
            errors.append(RowError(str(folder), number, f"{images[stem].name} has no caption in {stem}.txt"))
        elif stem not in images:
            errors.append(RowError(str(folder), number, f"{texts[stem].name} has no image beside it"))
        else:
            caption = _decoded(texts[stem]).removesuffix("\n").removesuffix("\r")
            rows.append(_Row(number, {"caption": caption, "images": [images[stem].name]}))
    return rows, errors
