"""Pictures that stand inside other files, written out as files of their own.

They go into the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), each named by the SHA-256 of its bytes: a picture
is written once, whole, and reading a data set again gives the same paths. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from diffkit.runs.files import write_bytes_atomically

__all__ = ["LARGEST_IMAGE", "cache_folder", "extract_image", "extracted_images_folder"]

LARGEST_IMAGE = 2**28
"""Bytes of a picture at most."""
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


def cache_folder() -> Path:
    """What diffkit keeps for a user: ``diffkit`` in ``XDG_CACHE_HOME``, else in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "diffkit"


def extracted_images_folder() -> Path:
    """Where the pictures go."""
    return cache_folder() / "images"


def extract_image(data: bytes) -> Path:
    """The file of a picture.

    Raises:
        ValueError: it is empty, larger than ``LARGEST_IMAGE``, or of no kind that can be read.
    """
    check_size(len(data))
    try:
        with Image.open(io.BytesIO(data)) as picture:
            kind = picture.format or ""
    except UnidentifiedImageError:
        raise ValueError("the bytes are no image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the bytes cannot be read as an image: {error}") from error
    digest = hashlib.sha256(data).hexdigest()
    path = extracted_images_folder() / digest[:2] / f"{digest}{SUFFIXES.get(kind, f'.{kind.lower()}')}"
    if not path.is_file() or path.stat().st_size != len(data):
        write_bytes_atomically(path, data)
    return path


def check_size(size: int) -> None:
    """Refuse a picture of so many bytes before it is read.

    Raises:
        ValueError: it is empty or larger than ``LARGEST_IMAGE``.
    """
    if not 0 < size <= LARGEST_IMAGE:
        raise ValueError(f"the image has {size} bytes, expected 1 to {LARGEST_IMAGE}")
