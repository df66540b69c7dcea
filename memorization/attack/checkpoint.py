"""The state of an unfinished search in a file, so that a search killed in the middle of an image can go on.

A state is a flat dictionary of tensors: parameters, Adam's moments, the generators' states, the triggers kept so far.
Checkpoints hold triggers, and triggers bring training images back: treat the folder as sensitive and clear it when the
results are recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffkit.errors import InputError
from diffkit.runs.files import write_bytes_atomically

#: Of a batch of B targets. Scalars are shared by all; ``kept.*`` and ``*history`` are (budgets, B, ...); all others are
#: (B, ...).
State = dict[str, Tensor]


def narrowed(state: Mapping[str, Tensor], rows: Sequence[int]) -> State:
    """The state of some targets of a batch, by their places.

    Example:
        >>> import torch
        >>> state = {"step": torch.tensor(3), "parameter.0": torch.zeros(4, 2), "kept.prompt_embeds": torch.zeros(5, 4)}
        >>> {name: tuple(tensor.shape) for name, tensor in narrowed(state, [0, 2]).items()}
        {'step': (), 'parameter.0': (2, 2), 'kept.prompt_embeds': (5, 2)}
    """
    places = torch.tensor(list(rows))

    def part(name: str, tensor: Tensor) -> Tensor:
        if tensor.ndim == 0 or tensor.numel() == 0:
            return tensor
        by_budget = name.startswith("kept.") or name.endswith("history")
        return tensor.index_select(1 if by_budget else 0, places)

    return {name: part(name, tensor) for name, tensor in state.items()}


class Checkpoint(Protocol):
    """The place of one search's state."""

    def load(self) -> State | None:
        """The last state saved, on the CPU, or None."""
        ...

    def due(self, step: int, *, last: bool = False) -> bool:
        """Whether the state after ``step`` steps is to be saved."""
        ...

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state at once: a crash leaves the old one or the new one."""
        ...


class Unsaved:
    """No state is kept."""

    def load(self) -> State | None:
        """None."""
        return None

    def due(self, step: int, *, last: bool = False) -> bool:
        """Never."""
        return False

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""


class FileCheckpoint:
    """A state in one safetensors file, replaced atomically.

    Args:
        path: of the file.
        every: steps between two saves; the end of the search is always saved.
    """

    def __init__(self, path: Path, every: int = 10) -> None:
        self.path = path
        self.every = every

    def load(self) -> State | None:
        """The last state saved, on the CPU, or None."""
        if not self.path.is_file():
            return None
        try:
            return load(self.path.read_bytes())
        except SafetensorError as error:
            raise InputError(f"The checkpoint {self.path} is damaged ({error}); delete it to begin anew.") from error

    def due(self, step: int, *, last: bool = False) -> bool:
        """After every ``every`` steps, and at the end."""
        return last or step % self.every == 0

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the file."""
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
        write_bytes_atomically(self.path, data)


class Checkpoints:
    """A folder of checkpoints, one file a batch of targets.

    Args:
        folder: made when first needed.
        every: steps between two saves.

    Raises:
        InputError: fewer than 1 step between saves.
    """

    def __init__(self, folder: str | Path, *, every: int = 10) -> None:
        if every < 1:
            raise InputError(f"Expected a checkpoint every 1 or more steps, got {every}.")
        self.folder = Path(folder)
        self.every = every

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of one batch, by its digest."""
        return FileCheckpoint(self.folder / f"{name}.safetensors", self.every)

    def clear(self) -> None:
        """Delete all states, once the results are recorded, and the folder if it is empty then."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
