"""Files of weights: what they hold by their header, and what is wrong with a damaged one.

Safetensors, and PyTorch's ``.bin`` where they hold nothing but tensors: those are read by ``weights_only``, which does
not execute what a pickle says.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from diffkit.errors import InputError

__all__ = ["TensorEntry", "first_dtype", "is_pointer", "read_header", "reason_unreadable", "refuse_unreadable"]

_POINTER = b"version https://git-lfs"
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}


class TensorEntry(TypedDict):
    """A tensor in a safetensors header; one of a ``.bin`` file has no offsets."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


def is_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in place of a large file that was not fetched."""
    with path.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def reason_unreadable(path: Path, error: BaseException | None = None) -> str:
    """Why a file of weights cannot be read, for a message; never empty."""
    if is_pointer(path):
        return "it is a git-lfs pointer and not the weights; run `git lfs pull` in its folder"
    if path.stat().st_size < 8:
        return "it is empty"
    if isinstance(error, _Program):
        return "it holds more than tensors, which could be a program and is not run; get the weights as .safetensors"
    reason = f" ({' '.join(str(error).split())})" if error is not None else ""
    return f"the file is damaged or cut short{reason}; get it again"


class _Program(ValueError):
    """A pickle that asks for more than tensors."""


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file of weights by name; no tensor is read.

    Raises:
        ValueError: it has no such header, ends before its last tensor, or is a ``.bin`` that holds more than tensors.
    """
    if path.suffix == ".bin":
        names = {dtype: name for name, dtype in _DTYPES.items()}
        return {
            name: TensorEntry(dtype=names.get(tensor.dtype, "F32"), shape=list(tensor.shape), data_offsets=[])
            for name, tensor in _pickled_tensors(path).items()
        }
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


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.bin`` file, without their data."""
    try:
        content: object = torch.load(path, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _Program(str(error)) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError("cut short") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise _Program("not tensors by name")
    return content


def refuse_unreadable(path: Path, what: str) -> None:
    """Check that a file of weights is whole, by its header and its size.

    Args:
        what: what the file belongs to, for the message.

    Raises:
        InputError: it is a pointer of git-lfs, empty, damaged or cut short, or could run a program.
    """
    try:
        read_header(path)
    except ValueError as error:
        raise InputError(f"{what} cannot be loaded: {path}: {reason_unreadable(path, _of_pickle(error))}.") from error


def _of_pickle(error: ValueError) -> ValueError | None:
    return error if isinstance(error, _Program) else None


def first_dtype(path: Path) -> torch.dtype:
    """The precision of the first tensor of a file of weights; float32 for any that is neither float16 nor bfloat16."""
    first = next(iter(read_header(path).values()), None)
    return torch.float32 if first is None else _DTYPES.get(first["dtype"], torch.float32)
