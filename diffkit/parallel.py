"""Items over processes: each takes every n-th, and all get everything back in order. By accelerate's process state.

Every function here but :func:`leave` is called by all processes alike, in the same order: they wait for each other.
When one of them ends, the others do too, by :class:`LostProcess` or by their launcher.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, zip_longest
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from diffkit.errors import DiffkitError, InputError
from diffkit.exit_codes import ExitCode
from diffkit.micro_batch import is_out_of_memory

__all__ = ["LostProcess", "broadcast", "everyone", "gather", "interleave", "is_first", "leave", "processes", "shard"]

T = TypeVar("T")

PATIENCE = timedelta(hours=6)  # how long a process waits for the slowest; a dead one is noticed at once
_NOBODY = object()


class LostProcess(DiffkitError):
    """Another process of the launch ended, so this one cannot go on either."""

    exit_code = ExitCode.FAILURE


def _state() -> PartialState:
    """State of this process among all of them; without an accelerator they communicate through the CPU."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_cpu = asked or not torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_RANK", "-1"))
    if not on_cpu and here >= torch.cuda.device_count():
        raise InputError(
            f"There are more processes than the {torch.cuda.device_count()} accelerators of this machine; start one "
            f"for each, or set ACCELERATE_USE_CPU=1."
        )
    return PartialState(cpu=on_cpu, timeout=PATIENCE) if here >= 0 else PartialState(cpu=on_cpu)


def processes() -> int:
    """How many processes there are."""
    return int(_state().num_processes)


def is_first() -> bool:
    """Whether this is the process that writes the record."""
    return bool(_state().process_index == 0)


def broadcast(value: T) -> T:
    """The first process's value, on every process."""
    shared: list[T] = [value]
    if processes() > 1:
        with _with_others():
            broadcast_object_list(shared)
    return shared[0]


def everyone(value: T) -> list[T]:
    """Each process's value, in the order of the processes; every process gets all."""
    if processes() == 1:
        return [value]
    with _with_others():
        values: list[T] = gather_object([value])
    return values


def shard(items: Sequence[T]) -> list[T]:
    """The items of this process: every n-th of them, n being the number of processes; all of them when it is alone."""
    state = _state()
    return list(items[state.process_index :: state.num_processes])


def gather(results: Sequence[T]) -> list[T]:
    """All processes' results in the order of the items that :func:`shard` dealt out; every process gets all.

    Each process calls it with one result for each of its items.
    """
    return interleave(everyone(list(results)))


def interleave(shares: Sequence[Sequence[T]]) -> list[T]:
    """One list from the processes' shares, in the order of the items that :func:`shard` dealt out."""
    rounds = chain.from_iterable(zip_longest(*shares, fillvalue=_NOBODY))
    return [item for item in rounds if item is not _NOBODY]  # type: ignore[misc]  # the rest are T


@contextmanager
def _with_others() -> Iterator[None]:
    """Turn a broken connection into an error of one sentence.

    Raises:
        LostProcess: the others cannot be reached any more.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LostProcess(
            "Another process of this launch has ended, so this one stops too; its own message says why. Nothing "
            "finished is lost: the same command goes on, with any number of processes."
        ) from error


def leave(code: int = 0) -> None:
    """Part from the other processes at the end of the command; does nothing when there are none.

    Args:
        code: the exit code. With a failure the process ends here and at once, so that the launcher ends the others.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    torch.distributed.destroy_process_group()  # else gloo's threads may outlive the interpreter, which aborts
