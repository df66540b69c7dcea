"""Files of weights in the safetensors format: what they hold by their header, and what is wrong with a damaged one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

import torch

from diffkit.errors import InputError

__all__ = ["TensorEntry", "first_dtype", "is_pointer", "read_header", "reason_unreadable", "refuse_unreadable"]

_POINTER = b"version https://git-lfs"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


class TensorEntry(TypedDict):
    """A tensor in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


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
    reason = f" ({' '.join(str(error).split())})" if error is not None else ""
    return f"the file is damaged or cut short{reason}; get it again"


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file by name; no tensor is read.

    Raises:
        ValueError: it has no such header, or ends before its last tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= size - 8:
            raise ValueError("no header")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header")
    entries: dict[str, TensorEntry] = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError("no header") from error
    if 8 + length + end > size:
        raise ValueError("cut short")
    return entries


def refuse_unreadable(path: Path, what: str) -> None:
    """Check that a safetensors file is whole, by its header and its size.

    Args:
        what: what the file belongs to, for the message.

    Raises:
        InputError: it is a pointer of git-lfs, empty, damaged or cut short.
    """
    try:
        read_header(path)
    except ValueError as error:
        raise InputError(f"{what} cannot be loaded: {path}: {reason_unreadable(path)}.") from error


def first_dtype(path: Path) -> torch.dtype:
    """The precision of a safetensors file's first tensor; float32 for any that is neither float16 nor bfloat16."""
    first = next(iter(read_header(path).values()), None)
    return torch.float32 if first is None else _DTYPES.get(first["dtype"], torch.float32)
