"""Rows of webdataset shards: ``.tar`` files in which ``cat.jpg``, ``cat.txt`` and ``cat.json`` are one sample.

The key of a sample is its members' name up to the first point, folders included. Its pictures are the members named
``cat.jpg``, ``cat.png`` and so on; its captions ``cat.txt`` (or ``.caption``, ``.text``), and the caption in
``cat.json`` where it differs; the rest of the JSON is kept. Nothing is unpacked by its name: pictures go into the cache
(see ``extracted``), links are not followed. Every sample is a row or an error, also where a shard was cut off.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffkit.errors import InputError
from diffkit.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from diffkit.suspects.columns import CAPTION_NAMES, IMAGE_NAMES
from diffkit.suspects.extracted import check_size, extract_image
from diffkit.suspects.record import Row, RowError, Rows

__all__ = ["is_shard", "read_webdataset", "shards_in"]

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
CAPTION_ENDS = ("txt", "text", "caption")
LARGEST_TEXT = 2**24  # bytes of a caption or of a sample's JSON
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


class _Sample(NamedTuple):
    """Members by their ends (``jpg``, ``txt``), and what is wrong with others."""

    members: dict[str, tarfile.TarInfo]
    reasons: list[str]


def is_shard(path: Path) -> bool:
    """Whether a file is named as a shard."""
    return path.name.lower().endswith(SHARD_SUFFIXES)


def shards_in(folder: Path) -> list[Path]:
    """The shards directly in a folder, by name; hidden ones aside."""
    return sorted(path for path in folder.iterdir() if is_shard(path) and not path.name.startswith("."))


def read_webdataset(path: Path, *, images: bool = True) -> Rows:
    """Rows of a shard, or of the shards in a folder.

    Args:
        path: the shard or the folder. In a folder the ids begin with the shard's name, since keys occur in several.
        images: whether pictures are extracted.

    Raises:
        InputError: there is no shard, or one is no .tar at all.
    """
    shards = shards_in(path) if path.is_dir() else [path]
    if not shards:
        raise InputError(f"{path} holds no .tar.")
    parts = [_read_shard(shard, f"{shard.name.split('.')[0]}/" if path.is_dir() else "", images) for shard in shards]
    return Rows([row for part in parts for row in part.rows], [error for part in parts for error in part.errors])


def _read_shard(shard: Path, prefix: str, images: bool) -> Rows:
    rows, errors = list[Row](), list[RowError]()
    try:
        with tarfile.open(shard) as archive:
            members, whole = _members(archive)
            samples = _samples(members)
            for number, (key, sample) in enumerate(samples.items(), start=1):
                errors += [RowError(str(shard), number, reason) for reason in sample.reasons]
                try:
                    values = _values(archive, sample.members, images)
                except (ValueError, *DAMAGE) as error:
                    errors.append(RowError(str(shard), number, f"{key}: {error}"))
                else:
                    rows.append(Row(shard, number, values, prefix + key))
    except DAMAGE as error:
        raise InputError(f"{shard} cannot be read as .tar: {error}.") from error
    if not whole:
        reason = "the archive ends without its end mark: what followed is missing; fetch it again"
        errors.append(RowError(str(shard), len(samples) + 1, reason))
    return Rows(rows, errors)


def _members(archive: tarfile.TarFile) -> tuple[list[tarfile.TarInfo], bool]:
    """The members, and whether the archive is whole: its list ends with a block of zeros."""
    members = []
    try:
        while (member := archive.next()) is not None:
            members.append(member)
        archive.fileobj.seek(archive.offset)
        return members, archive.fileobj.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except DAMAGE:
        if not members:
            raise
        return members, False


def _samples(members: Iterable[tarfile.TarInfo]) -> dict[str, _Sample]:
    samples: dict[str, _Sample] = {}
    for member in members:
        path = PurePosixPath(member.name)
        if member.isdir() or path.name.startswith("."):
            continue
        stem, _, end = path.name.partition(".")
        sample = samples.setdefault(str(path.with_name(stem)), _Sample({}, []))
        reason = _refusal(member, path, sample.members.get(end.lower()))
        if reason is None:
            sample.members[end.lower()] = member
        else:
            sample.reasons.append(f"{member.name} {reason}")
    return samples


def _refusal(member: tarfile.TarInfo, path: PurePosixPath, earlier: tarfile.TarInfo | None) -> str | None:
    """Why a member is not read."""
    if path.is_absolute() or ".." in path.parts:
        return "leads out of the archive and is not read"
    if not member.isfile():
        return "is a link or a device and is not read"
    if earlier is not None:
        return "stands twice; the first is read"
    end = path.suffix.lower()
    if path.name.count(".") > 1 and end in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES:
        return f"is not read: a sample's picture is named {path.name.split('.')[0]}{end}"
    return None


def _values(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], images: bool) -> dict[str, object]:
    """The columns of a sample.

    Raises:
        ValueError: it has no picture, or a member cannot be read.
    """
    pictures = [end for end in members if f".{end}" in IMAGE_SUFFIXES | UNREADABLE_SUFFIXES]
    if not pictures:
        raise ValueError(f"no picture among its members {', '.join(members) or '(none)'}")
    unreadable = next((end for end in pictures if f".{end}" in UNREADABLE_SUFFIXES), None)
    if unreadable is not None:
        raise ValueError(f"pictures of the kind .{unreadable} cannot be read here; convert them to PNG")
    values = _json(archive, members["json"]) if "json" in members else {}
    texts = [_text(archive, members[end]).rstrip("\r\n") for end in CAPTION_ENDS if end in members]
    if texts:
        values = _with_captions(values, texts)
    others = {end: f"{member.size} bytes" for end, member in members.items()
              if end not in (*pictures, *CAPTION_ENDS, "json")}  # fmt: skip
    paths = [str(extract_image(_content(archive, members[end]))) for end in pictures] if images else []
    return {**others, **values, "images": paths}


def _json(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, object]:
    """The columns of a sample's JSON; those that name images are the sample's own and are kept as text."""
    try:
        values = json.loads(_text(archive, member))
    except RecursionError as error:
        raise ValueError(f"{member.name} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{member.name} is no JSON object")
    return {f"json {name}" if name.strip().lower() in IMAGE_NAMES else name: value for name, value in values.items()}


def _with_captions(values: Mapping[str, object], texts: list[str]) -> dict[str, object]:
    """Values whose captions are the texts and the caption in the values, each once."""
    columns = [name for caption in CAPTION_NAMES for name in values if name.strip().lower() == caption]
    own = values[columns[0]] if columns else None
    more = own if isinstance(own, list) else [own]
    captions = list(dict.fromkeys([*texts, *(text for text in more if isinstance(text, str) and text.strip())]))
    return {"caption": captions, **{name: value for name, value in values.items() if name not in columns[:1]}}


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > LARGEST_TEXT:
        raise ValueError(f"{member.name} has {member.size} bytes, expected at most {LARGEST_TEXT}")
    try:
        return _bytes(archive, member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{member.name} is not UTF-8 (byte {error.start})") from None


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    check_size(member.size)
    return _bytes(archive, member)


def _bytes(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    with file:
        return file.read()
