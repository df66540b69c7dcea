"""Rows of Parquet and Arrow files: data sets, and lists of addresses with pictures beside them.

Read are the columns that every list has (see ``columns``; LAION's ``TEXT`` is a caption, its ``URL`` is kept). Pictures
are bytes, as ``datasets`` keeps them (``{bytes, path}``) or as img2dataset does (a column ``jpg``, ``png`` or
``webp``); or files that img2dataset saved under the ``key`` of the row, ``00000/000000123.jpg`` beside
``00000.parquet``. Arrow files are those of ``datasets``' ``save_to_disk``. A row whose download failed is an error.
Needs pyarrow: ``pip install 'diffkit[datasets]'``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffkit.errors import InputError
from diffkit.images import IMAGE_SUFFIXES
from diffkit.suspects.columns import CAPTION_NAMES, IMAGE_NAMES, READ_NAMES
from diffkit.suspects.extracted import extract_image
from diffkit.suspects.record import Row, RowError, Rows

__all__ = ["TABLE_SUFFIXES", "read_parquet"]

TABLE_SUFFIXES = (".parquet", ".arrow")

BYTES_NAMES = ("jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
"""Columns of bytes that are pictures, beside those of ``IMAGE_NAMES``."""
BATCH = 64  # rows in memory at once


def read_parquet(path: Path, *, images: bool = True) -> Rows:
    """Rows of a Parquet or Arrow file.

    Args:
        path: the file.
        images: whether pictures are extracted or looked for.

    Raises:
        InputError: pyarrow is missing, or the file has no caption column or is damaged.
    """
    rows, errors = list[Row](), list[RowError]()
    for number, values in enumerate(_records(path), start=1):
        try:
            rows.append(_row(path, number, values, images))
        except InputError:
            raise
        except ValueError as error:
            errors.append(RowError(str(path), number, str(error)))
    return Rows(rows, errors)


def _records(file: Path) -> Iterator[dict[str, object]]:
    """The rows of a file, column by name."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"Reading {file.name} takes pyarrow: pip install 'diffkit[datasets]'.") from error
    try:
        if file.suffix.lower() == ".arrow":
            with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as opened:
                _check_columns(file, opened.schema.names)
                for batch in opened:
                    for first in range(0, len(batch), BATCH):
                        yield from batch.slice(first, BATCH).to_pylist()
            return
        with pyarrow.parquet.ParquetFile(file) as opened:
            _check_columns(file, opened.schema_arrow.names)
            for batch in opened.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} cannot be read as {file.suffix}: {str(error).splitlines()[0]}") from error


def _check_columns(file: Path, names: Sequence[str]) -> None:
    counts = Counter(name.strip().lower() for name in names)
    if not set(CAPTION_NAMES) & set(counts):
        columns = ", ".join(repr(name) for name in names)
        raise InputError(f"{file} has no caption column: found {columns}; expected one of {', '.join(CAPTION_NAMES)}.")
    repeated = next((name for name, count in counts.items() if count > 1 and name in READ_NAMES), None)
    if repeated is not None:
        raise InputError(f"{file} has two columns {repeated!r}; rename one of them.")


def _row(file: Path, number: int, values: Mapping[str, object], images: bool) -> Row:
    """A row with its pictures as paths.

    Raises:
        ValueError: its download failed, or its picture is missing or cannot be read.
    """
    if "error_message" in values and (status := values.get("status", "success")) != "success":  # of img2dataset
        raise ValueError(f"the image was not downloaded: {status}, {values['error_message']}")
    pictures = {name: value for name, value in values.items() if _is_picture_column(name, value)}
    others = {name: _plain(value) for name, value in values.items() if name not in pictures}
    if not images:
        return Row(file, number, others)
    embedded = next((name for name, value in values.items() if name not in pictures and _is_embedded(value)), None)
    if embedded is not None and not pictures:
        raise ValueError(f"the column {embedded!r} holds an image; call it image for it to be read")
    found = [picture for value in pictures.values() for picture in _pictures(value)]
    key = values.get("key")
    if isinstance(key, str | int) and not found and not any(others[name] for name in others if _names_images(name)):
        found = _saved(file, str(key))
    name = str(key) if key is not None else next(filter(None, map(_name, pictures.values())), None)
    column = next(iter(pictures), "images")
    return Row(file, number, {**others, column if _names_images(column) else "images": found},
               name or f"{file.stem}-row-{number}")  # fmt: skip


def _names_images(column: str) -> bool:
    return column.strip().lower() in IMAGE_NAMES


def _is_picture_column(name: str, value: object) -> bool:
    """Whether a column holds bytes of pictures; paths as text are read as in any other list."""
    if _names_images(name):
        return not isinstance(value, str)
    return name.strip().lower() in BYTES_NAMES and isinstance(value, bytes)


def _is_embedded(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), bytes)


def _pictures(value: object) -> list[str]:
    """The paths of a value: of bytes that of the extracted file."""
    if isinstance(value, list):
        return [path for entry in value for path in _pictures(entry)]
    if isinstance(value, dict):
        value = value["bytes"] if _is_embedded(value) else value.get("path")
    if isinstance(value, bytes):
        return [str(extract_image(value))]
    if value is None or value == "":
        return []
    if not isinstance(value, str):
        raise ValueError(f"expected an image or its path, got {type(value).__name__}")
    return [value]


def _name(value: object) -> str | None:
    """The name of a picture that ``datasets`` keeps with its path."""
    path = value.get("path") if isinstance(value, dict) else None
    return Path(path).stem if isinstance(path, str) else None


def _saved(file: Path, key: str) -> list[str]:
    """The picture that img2dataset saved under the key; none where the file is a list of addresses only.

    Raises:
        ValueError: there is a folder of pictures, but no such picture.
        InputError: the pictures are in a shard.
    """
    folder = file.with_suffix("")
    paths = [place / f"{key}{suffix}" for place in (folder, file.parent) for suffix in sorted(IMAGE_SUFFIXES)]
    if Path(key).name == key and (path := next((path for path in paths if path.is_file()), None)):
        return [str(path.absolute())]
    if folder.is_dir():
        raise ValueError(f"there is no image {key} in {folder}")
    if (shard := file.with_suffix(".tar")).is_file():
        raise InputError(f"The images of {file.name} are in {shard.name}: give that file, or its folder.")
    return []


def _plain(value: object) -> object:
    """The value as JSON can write it: bytes by their number, what JSON does not know as text."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
