"""The text of a file of captions."""

from __future__ import annotations

import codecs
from pathlib import Path

from diffkit.errors import InputError

__all__ = ["read_text"]

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without byte order mark, or in UTF-16 with one, as spreadsheets write it.

    Where lines end in a carriage return alone, as old spreadsheets write them, it becomes ``\\n``.

    Raises:
        InputError: it is in another encoding, or cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8.") from error
    if "\0" in text:
        raise InputError(f"{path} is not UTF-8 (it holds zero bytes); save it as UTF-8.")
    return text if "\n" in text else text.replace("\r", "\n")
