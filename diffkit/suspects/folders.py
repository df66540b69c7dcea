"""Rows of a folder: images with captions beside them, or named by a metadata file.

Read are the layouts of diffusers and datasets (``metadata.jsonl``, ``.csv`` or ``.parquet`` with a ``file_name``), of
sd-scripts (``a.png`` with ``a.txt`` or ``a.caption``; in a folder ``10_dog`` an image without either is captioned
"dog"), captions named ``a.png.txt``, webdataset shards, and Parquet files with or without pictures of their keys. A
folder with no image of its own is read subfolder by subfolder. Every image below the folder, and every archive, is in a
row or in an error.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from diffkit.errors import InputError
from diffkit.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, is_image_name
from diffkit.suspects.columns import IMAGE_NAMES
from diffkit.suspects.decoding import read_text
from diffkit.suspects.image_files import image_files
from diffkit.suspects.lists import read_jsonl
from diffkit.suspects.parquet import TABLE_SUFFIXES, read_parquet
from diffkit.suspects.record import Row, RowError, Rows
from diffkit.suspects.tables import read_table
from diffkit.suspects.webdataset import is_shard, read_webdataset

__all__ = ["read_folder"]

METADATA_READERS: dict[str, Callable[[Path], Rows]] = {
    "metadata.jsonl": read_jsonl,
    "metadata.csv": read_table,
    "metadata.parquet": read_parquet,
}
PICTURE_SUFFIXES = IMAGE_SUFFIXES | UNREADABLE_SUFFIXES
CAPTION_SUFFIXES = (".txt", ".caption")
PACKED_SUFFIXES = (".zip", ".7z", ".rar")
DATASETS_CACHE = re.compile(r"cache-[0-9a-z_]+\.arrow")  # what map and filter of datasets write beside the data
REPEATS_AND_NAME = re.compile(r"\d+_(.+)")  # of sd-scripts: how often an epoch shows the folder, and its caption


def read_folder(folder: Path, *, images: bool = True) -> Rows:
    """Rows of the images of a folder.

    Args:
        folder: of images, of shards or of Parquet files.
        images: whether pictures are taken out of shards and Parquet files.

    Raises:
        InputError: it holds no image, or a metadata file cannot be read.
    """
    rows = _joined([_read(folder, folder, images), _packed(folder)])
    if not rows.rows and not rows.errors:
        raise InputError(f"{folder} holds no images and no {' or '.join(METADATA_READERS)}.")
    return rows


def _read(folder: Path, root: Path, images: bool) -> Rows:
    files = _files(folder)
    listing = next((folder / name for name in METADATA_READERS if (folder / name) in files), None)
    if listing is not None:
        rows = METADATA_READERS[listing.name](listing)
        return _joined([_listed(folder, rows, listing.name, files), _archives(files)])
    if any(_is_picture(path) for path in files):
        below = Rows([], _not_read(folder, "lies in a subfolder, beside images that are read"))
        return _joined([_paired(folder, files, root), below, _archives(files)])
    tables = [
        path for path in files if path.suffix.lower() in TABLE_SUFFIXES and not DATASETS_CACHE.fullmatch(path.name)
    ]
    shards = [path for path in files if is_shard(path)]
    if shards:
        stems = {path.name.split(".")[0] for path in shards}  # img2dataset puts a table of the same name beside each
        others = _archives([path for path in tables if path.stem not in stems])
        return _joined([read_webdataset(folder, images=images), others, *_of_subfolders(folder, root, images)])
    if tables:
        rows = _joined([read_parquet(path, images=images) for path in tables])
        return _listed(folder, rows, "a table", files)
    lonely = [RowError(str(path), 1, "a caption without an image beside it") for path in files if _is_caption(path)]
    return _joined([Rows([], lonely), *_of_subfolders(folder, root, images)])


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows([row for part in parts for row in part.rows], [error for part in parts for error in part.errors])


def _of_subfolders(folder: Path, root: Path, images: bool) -> list[Rows]:
    return [_read(path, root, images) for path in _subfolders(folder)]


def _archives(files: Sequence[Path]) -> Rows:
    """An error for each shard and Parquet file beside images that are read."""
    reason = "is not read, beside images that are: name it by itself"
    archives = (path for path in files if is_shard(path) or path.suffix.lower() in TABLE_SUFFIXES)
    unread = (path for path in archives if path.name not in METADATA_READERS)
    return Rows([], [RowError(str(path), 1, f"{path.name} {reason}") for path in unread])


def _packed(folder: Path) -> Rows:
    """An error for each archive that only a program of its own opens, in the folder and below."""
    packed = [path for path in _files(folder) if path.suffix.lower() in PACKED_SUFFIXES]
    errors = [RowError(str(path), 1, f"{path.name} is not read; unpack it into a folder") for path in packed]
    return _joined([Rows([], errors), *map(_packed, _subfolders(folder))])


def _files(folder: Path) -> list[Path]:
    """What is no folder; a link to nothing too, as it stands for a picture that is gone."""
    return _entries(folder, folders=False)


def _subfolders(folder: Path) -> list[Path]:
    """Its folders; hidden ones, and links to the folder itself or to one above, are left out."""
    above = {folder.resolve(), *folder.resolve().parents}
    return [path for path in _entries(folder, folders=True) if path.resolve() not in above]


def _entries(folder: Path, *, folders: bool) -> list[Path]:
    """Paths of its files or of its folders, by their names; hidden ones are left out."""
    with os.scandir(folder) as entries:  # it knows which are folders without a look at each file
        names = sorted(
            entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry) == folders
        )
    return [folder / name for name in names]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link to itself is none."""
    return Path(entry).is_dir() if entry.is_symlink() else entry.is_dir()


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES


def _is_caption(path: Path) -> bool:
    return path.suffix.lower() in CAPTION_SUFFIXES


def _pictures_below(folder: Path) -> Iterator[Path]:
    """All pictures in the folder and its subfolders."""
    yield from (path for path in _files(folder) if _is_picture(path))
    for subfolder in _subfolders(folder):
        yield from _pictures_below(subfolder)


def _listed(folder: Path, rows: Rows, listing: str, files: Sequence[Path]) -> Rows:
    """Rows of a list, an error for each picture that it does not name, and one for a second metadata file."""
    named = {path.resolve() for row in rows.rows for path in _named_images(row)}
    errors = [
        RowError(str(path), 1, f"{path.name} is not read, since {listing} is; remove one of them")
        for path in files
        if path.name in METADATA_READERS and path.name != listing
    ]
    unlisted = [path for path in _pictures_below(folder) if path.resolve() not in named]
    errors += [
        RowError(str(folder), number, f"{path.relative_to(folder)} is not named in {listing}")
        for number, path in enumerate(unlisted, start=1)
    ]
    return Rows(rows.rows, rows.errors + errors)


def _named_images(row: Row) -> Iterator[Path]:
    for name, value in row.values.items():
        if name.strip().lower() in IMAGE_NAMES:
            try:
                yield from image_files(value, row.folder)
            except ValueError:
                continue  # it is an error of its row


def _not_read(folder: Path, reason: str) -> list[RowError]:
    """An error for each picture in a subfolder."""
    below = [path for subfolder in _subfolders(folder) for path in _pictures_below(subfolder)]
    return [
        RowError(str(path.parent), number, f"{path.relative_to(folder)} {reason}: name {path.parent} itself to read it")
        for number, path in enumerate(below, start=1)
    ]


def _paired(folder: Path, files: Sequence[Path], root: Path) -> Rows:
    """A row for each picture with a caption, an error for each other picture and for each caption without a picture."""
    pictures = [path for path in files if _is_picture(path)]
    captions = {_composed(path.stem) + path.suffix.lower(): path for path in files if _is_caption(path)}
    stems = Counter(_composed(path.stem) for path in pictures)
    rows, errors, used = list[Row](), list[RowError](), set[str]()
    for number, path in enumerate(pictures, start=1):
        own = [_composed(path.name) + suffix for suffix in CAPTION_SUFFIXES]
        shared = [_composed(path.stem) + suffix for suffix in CAPTION_SUFFIXES]
        names = [name for name in (*own, *shared) if name in captions]
        used.update(names)
        try:
            texts = _captions(path, folder, [captions[name] for name in names], own, stems)
        except ValueError as error:
            errors.append(RowError(str(folder), number, str(error)))
        else:
            name = path.relative_to(root).with_suffix("").as_posix()
            rows.append(Row(folder, number, {"caption": texts, "images": [path.name]}, name))
    for name in sorted(set(captions) - used):
        reason = f"{captions[name].name} has no image beside it"
        errors.append(RowError(str(folder), len(pictures) + len(errors) + 1, reason))
    return Rows(rows, errors)


def _captions(path: Path, folder: Path, files: Sequence[Path], own: Sequence[str], stems: Counter[str]) -> list[str]:
    """The captions of a picture: the lines of its caption files, or the caption that the folder's name gives.

    Raises:
        ValueError: the picture cannot be read, has no caption, or shares its caption with a picture of the same stem.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is a link to a file that is not there")
    if not is_image_name(path.name):
        raise ValueError(f"{path.name} is of a kind that cannot be read here; convert it to PNG")
    if stems[_composed(path.stem)] > 1 and not any(_composed(file.stem) == _composed(path.name) for file in files):
        raise ValueError(
            f"{path.name} is one of several images named {path.stem}; name a caption {path.name}.txt, or rename one"
        )
    lines = [line.removesuffix("\r") for file in files for line in read_text(file).split("\n")]
    captions = list(dict.fromkeys(line for line in lines if line.strip()))
    if captions:
        return captions
    if files:
        raise ValueError(f"{path.name} has an empty caption in {files[0].name}")
    name = REPEATS_AND_NAME.fullmatch(folder.name)
    if name is None:
        raise ValueError(f"{path.name} has no caption in {path.stem}.txt or {path.stem}.caption")
    return [name[1]]


def _composed(name: str) -> str:
    """The name with accents composed, as a Mac and Linux write the same name differently."""
    return unicodedata.normalize("NFC", name)
