"""The image files that a value of a list names."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from diffkit.images import UNREADABLE_SUFFIXES, is_image_name

__all__ = ["existing_image", "image_files"]


def image_files(value: object, folder: Path) -> Iterator[Path]:
    """The files of a path, of several separated by ; or |, of a list of them (JSON too), or of all images in a folder.

    Args:
        value: as it stands in the list.
        folder: where relative paths begin.

    Raises:
        ValueError: there is no such file, it is an address, or no path at all.
    """
    for name in _names(value, folder):
        path = existing_image(folder, name)
        if path is None:
            if "://" in name:
                raise ValueError(f"{name} is an address; save the image and give its path (nothing is downloaded)")
            raise ValueError(f"there is no image {folder / name}")
        if path.is_dir():
            yield from _inside(path)
        else:
            yield path


def _inside(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    unreadable = [file.name for file in files if file.suffix.lower() in UNREADABLE_SUFFIXES]
    if unreadable:
        raise ValueError(f"the folder {folder} holds {unreadable[0]}, which cannot be read; convert it to PNG")
    images = [file for file in files if is_image_name(file.name)]
    if not images:
        raise ValueError(f"the folder {folder} holds no image")
    return images


def existing_image(folder: Path, name: str) -> Path | None:
    """The file or folder of that name; backslashes are read too, and accents however they are composed."""
    forms = (name, name.replace("\\", "/"))
    composed = (unicodedata.normalize(kind, form) for form in forms for kind in ("NFC", "NFD"))
    return next((folder / form for form in (*forms, *composed) if _exists(folder / form)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name can be, or with a zero byte: text, not a name
        return False


def _names(value: object, folder: Path) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("[") and not existing_image(folder, value):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"the list of images is no JSON: {value!r}") from None
    if isinstance(value, dict) and isinstance(value.get("path"), str):  # as datasets exports an image
        value = value["path"]
    if isinstance(value, list):
        if not all(isinstance(name, str) and name for name in value):
            raise ValueError(f"expected paths of images, got {value!r}")
        return value
    if value is None or value == "":
        return []
    if not isinstance(value, str):
        raise ValueError(f"expected the path of an image, got {value!r}")
    if existing_image(folder, value):  # a name may hold a separator
        return [value]
    return [name.strip() for name in value.replace("|", ";").split(";") if name.strip()]
