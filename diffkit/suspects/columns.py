"""From a row to suspects: which columns hold captions, images, kind and id.

A row with several captions of one picture gives a suspect each, since each is a key of its own to a memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffkit.images import IMAGE_SUFFIXES
from diffkit.suspects.image_files import existing_image, image_files
from diffkit.suspects.record import Row, RowError, Suspect, writable

__all__ = ["CAPTION_NAMES", "IMAGE_NAMES", "READ_NAMES", "suspects_of_rows"]

#: Columns in the order in which they are looked for; capitals do not matter. Of several, only the first is read.
CAPTION_NAMES = ("caption", "prompt", "text", "captions", "prompts", "texts")
#: Columns of images; all of them are read.
IMAGE_NAMES = (
    "images", "image", "gt_images", "file_name", "file_names", "filename", "image_file", "image_file_name",
    "image_path", "image_paths", "img", "img_path",
)  # fmt: skip
KIND_NAMES = ("type", "overfit_type", "kind")
READ_NAMES = frozenset({*CAPTION_NAMES, *IMAGE_NAMES, *KIND_NAMES, "id"})
SAME_KIND = {"MV": "VM", "TV": "TM"}  # Webster's words for NeMo's verbatim and template memories


class _Captions(NamedTuple):
    good: list[str]
    reasons: list[str]


def suspects_of_rows(rows: Sequence[Row], *, images: bool = True) -> tuple[list[Suspect], list[RowError]]:
    """Suspects of the rows, in order, and an error for each caption or row that can be none.

    Without ``images`` columns of images are not looked at. No id that is made here is one that a row gives.
    """
    suspects: list[Suspect] = []
    errors: list[RowError] = []
    taken: set[str] = set()
    given = {_given_id(dict(row.values)) for row in rows}
    for row in rows:
        try:
            captions, template = _read(row, taken, images)
        except ValueError as error:
            errors.append(_error(row, str(error)))
            continue
        errors += [_error(row, reason) for reason in captions.reasons]
        for place, caption in enumerate(captions.good, start=1):
            identity = template.id if place == 1 else f"{template.id}-caption-{place}"
            if place > 1 or not _given_id(dict(row.values)):
                identity = _free(identity, row.number, taken, given)
            taken.add(identity)
            suspects.append(Suspect(identity, caption, template.images, template.kind, template.extra))
    return suspects, errors


def _error(row: Row, reason: str) -> RowError:
    """The error of a row; it names the row's image."""
    images = (value for value in _take_all(dict(row.values), IMAGE_NAMES) if value)
    name = _text(next(images, None))
    return RowError(str(row.source), row.number, writable(reason if name in reason else f"{reason} (image {name})"))


def _read(row: Row, taken: set[str], with_images: bool) -> tuple[_Captions, Suspect]:
    """The captions of a row, and a suspect with everything but the caption."""
    values = dict(row.values)
    captions = _captions(_take(values, CAPTION_NAMES))
    paths = list(_take_all(values, IMAGE_NAMES))
    images = _images(paths, values, row.folder) if with_images else ()
    kind = _text(_take(values, KIND_NAMES)) or None
    given = _given_id(values)
    if given in taken:
        raise ValueError(f"the id {given!r} stands in an earlier row")
    for text in (*captions.good, given, row.name or "", *map(str, images)):
        if writable(text) != text:
            raise ValueError(f"{text!r} holds half of a character or is in another encoding; write it as UTF-8")
    identity = given or row.name or (images[0].stem if images else f"row-{row.number}")
    extra = {name: _text(value) for name, value in values.items() if name}
    return captions, Suspect(identity, "", images, SAME_KIND.get(kind, kind) if kind else None, extra)


def _images(paths: Iterable[object], others: Mapping[str, object], folder: Path) -> tuple[Path, ...]:
    """The files of the columns of images.

    Raises:
        ValueError: a file is not there, or no column of images names one but another column does.
    """
    images = tuple(dict.fromkeys(file for value in paths for file in image_files(value, folder)))
    for name, value in others.items() if not images else ():
        if isinstance(value, str) and Path(value).suffix.lower() in IMAGE_SUFFIXES and existing_image(folder, value):
            raise ValueError(f"the column {name!r} names the image {value}; call it image for it to be read")
    return images


def _given_id(values: dict[str, object]) -> str:
    """Remove and return the id that a row gives; empty without one."""
    return _text(_take(values, ("id",)))


def _free(identity: str, number: int, taken: set[str], given: set[str]) -> str:
    while identity in taken or identity in given:
        identity = f"{identity}-row-{number}"
    return identity


def _captions(value: object) -> _Captions:
    values = value if isinstance(value, list) and value else [value]
    captions = _Captions([], [])
    for caption in values:
        if isinstance(caption, str) and caption.strip():
            captions.good.append(caption)
        else:
            blank = caption is None or (isinstance(caption, str) and not caption.strip())
            captions.reasons.append("the caption is missing" if blank else f"no caption: {caption!r}")
    return captions


def _take(values: dict[str, object], names: Iterable[str]) -> object:
    """Remove and return the first column of these names, whatever their capitals."""
    return next(_take_all(values, names), None)


def _take_all(values: dict[str, object], names: Iterable[str]) -> Iterator[object]:
    """Remove and return the columns of these names, in the order of the names."""
    for column in names:
        for name in list(values):
            if name.strip().lower() == column:
                yield values.pop(name)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
