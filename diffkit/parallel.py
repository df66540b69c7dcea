"""Items over processes: each takes every n-th, and all get everything back in order. By accelerate's process state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

__all__ = ["broadcast", "gather", "is_first", "processes", "shard"]

T = TypeVar("T")


def _state() -> PartialState:
    """The process's place among its mates; without an accelerator they talk through the CPU, which must be said."""
    return PartialState(cpu=not torch.cuda.is_available())


def processes() -> int:
    """How many processes there are."""
    return int(_state().num_processes)


def is_first() -> bool:
    """Whether this is the process that writes the record."""
    return bool(_state().process_index == 0)


def broadcast(value: T) -> T:
    """The first process's value, on every process; each process calls it."""
    shared: list[T] = [value]
    if processes() > 1:
        broadcast_object_list(shared)
    return shared[0]


def shard(items: Sequence[T]) -> list[T]:
    """The items of this process: every n-th of them, n being the number of processes; all of them when it is alone."""
    state = _state()
    return list(items[state.process_index :: state.num_processes])


def gather(results: Sequence[T]) -> list[T]:
    """All processes' results in the order of the items that :func:`shard` dealt out; every process gets all.

    Each process calls it once, with one result for each of its items.
    """
    state = _state()
    if state.num_processes == 1:
        return list(results)
    flat: list[tuple[int, T]] = gather_object(
        [(state.process_index + turn * state.num_processes, result) for turn, result in enumerate(results)]
    )
    return [result for _, result in sorted(flat, key=lambda pair: pair[0])]
