"""Files of weights: what is wrong with one that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from diffkit.errors import InputError

__all__ = ["first_dtype", "is_pointer", "reason_unreadable", "refuse_unreadable"]

_POINTER = b"version https://git-lfs"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


def is_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that was not fetched."""
    with path.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def reason_unreadable(path: Path, error: BaseException | None = None) -> str:
    """Why a safetensors file cannot be read, for a message; never empty."""
    if is_pointer(path):
        return "it is a git-lfs pointer and not the weights; run `git lfs pull` in its folder"
    if path.stat().st_size < 8:
        return "it is empty"
    reason = " ".join(str(error).split()) if error is not None else "its header is damaged"
    return f"the file is damaged or cut short ({reason}); get it again"


def _header(path: Path) -> dict[str, dict[str, object]] | None:
    """The header of a safetensors file; None where it has none or the file ends before its last tensor."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= size - 8:
                return None
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return header if 8 + length + max(ends, default=0) <= size else None


def refuse_unreadable(path: Path, what: str) -> None:
    """Check that a safetensors file is whole, by its header and its size; no tensor is read.

    Args:
        what: what the file belongs to, for the message.

    Raises:
        InputError: it is a pointer of git-lfs, empty, damaged or cut short.
    """
    if _header(path) is None:
        raise InputError(f"{what} cannot be loaded: {path}: {reason_unreadable(path)}.")


def first_dtype(path: Path) -> torch.dtype:
    """The precision of a safetensors file's first tensor; float32 for any that is neither float16 nor bfloat16."""
    header = _header(path) or {}
    first = next(iter(header.values()), {})
    return _DTYPES.get(str(first.get("dtype")), torch.float32)
