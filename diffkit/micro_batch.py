"""How many rows run at once: a fixed number, or ``auto``, which is halved whenever memory runs out.

``auto`` begins at the most that is worth trying and ends at the largest power of two that fits. Work that
ran out of memory is repeated in smaller parts, so the results are those of a run with the smaller number from the
beginning.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar

from diffkit.console import say
from diffkit.errors import DiffkitError, InputError
from diffkit.exit_codes import ExitCode

if TYPE_CHECKING:
    import torch

__all__ = ["AUTO_MOST", "MicroBatch", "OutOfMemory", "auto_size", "is_out_of_memory", "read_micro_batch"]

T = TypeVar("T")
R = TypeVar("R")

#: Where ``auto`` begins, by the type of the device; on a CPU more rows at once save no time.
AUTO_MOST = {"cpu": 8}
AUTO_MOST_ELSEWHERE = 64

#: Words of the libraries where they raise a plain RuntimeError.
SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "failed to allocate")


class OutOfMemory(DiffkitError):
    """Memory did not suffice for a single row."""

    exit_code = ExitCode.FAILURE


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: an accelerator's own class, or its words in a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    words = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(sign in words for sign in SIGNS)


def read_micro_batch(text: str) -> int | Literal["auto"]:
    """What ``--micro-batch`` was given: a number or ``auto``.

    Raises:
        InputError: neither a whole number of at least 1 nor ``auto``.
    """
    if text.strip().lower() == "auto":
        return "auto"
    if not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"--micro-batch takes a whole number of at least 1, or auto; got {text!r}.")
    return int(text)


def auto_size(device: torch.device) -> int:
    """Where ``auto`` begins on a device."""
    return AUTO_MOST.get(device.type, AUTO_MOST_ELSEWHERE)


class MicroBatch:
    """The number of rows that run at once in one kind of work.

    Args:
        size: the number, or where ``auto`` begins.
        adaptive: whether it is halved when memory runs out; otherwise the error passes.
        what: whose rows, for the line that says so.

    Attributes:
        size: at present; it never grows.
    """

    def __init__(self, size: int, *, adaptive: bool = False, what: str = "rows") -> None:
        self.size, self.adaptive, self.what = size, adaptive, what

    @classmethod
    def of(cls, size: int | Literal["auto"], device: torch.device, *, what: str = "rows") -> MicroBatch:
        """A fixed number, or ``auto`` for work on a device."""
        if size == "auto":
            return cls(auto_size(device), adaptive=True, what=what)
        return cls(size, what=what)

    def fit(self, work: Callable[[int], R]) -> R:
        """What ``work`` returns at the present size, or at the first smaller one that fits.

        Args:
            work: takes the number of rows at once; it is called anew after it ran out of memory.

        Raises:
            OutOfMemory: a single row does not fit.
        """
        while True:
            try:
                return work(self.size)
            except (RuntimeError, MemoryError) as error:
                if not (self.adaptive and is_out_of_memory(error)):
                    raise
                if self.size == 1:
                    raise OutOfMemory(
                        f"Memory does not suffice for one of the {self.what} at a time; use a smaller precision "
                        f"(--dtype), smaller images or a larger device."
                    ) from error
            self._step_down()  # out here: the error held on to the frames, and so to the tensors, that failed

    def each(self, items: Sequence[T], work: Callable[[Sequence[T], int], R]) -> Iterator[tuple[Sequence[T], R]]:
        """Parts of the items, each no larger than the size, with what ``work`` made of them.

        Args:
            work: takes a part and the size at once, to which it may pad.
        """
        rest = items
        while rest:
            part, result = self.fit(lambda size, rest=rest: (rest[:size], work(rest[:size], size)))  # type: ignore[misc]
            yield part, result
            rest = rest[len(part) :]

    def _step_down(self) -> None:
        failed, self.size = self.size, max(1, self.size // 2)
        say(f"Memory ran out with {failed} {self.what} at once; going on with {self.size}.")
        free_memory()


def free_memory() -> None:
    """Return unused memory to the device before a smaller attempt."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
