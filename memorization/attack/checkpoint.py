"""The state of an unfinished search on the disk: a search killed in the middle of an image goes on where it was.

A state is a flat dictionary of tensors: the variables, Adam's moments, the generators' states, what was kept so far.
Checkpoints hold triggers, and triggers bring training images back: treat the folder as sensitive and clear it when the
results are recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.runs.files import write_bytes_atomically
from memorization.text_embeddings import encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.attack.base import Batch

State = dict[str, Tensor]


class Checkpoint(Protocol):
    """Where one search keeps its state."""

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
    """A search that keeps no state."""

    def load(self) -> State | None:
        """None."""
        return None

    def due(self, step: int, *, last: bool = False) -> bool:
        """Never."""
        return False

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Nothing."""


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
        """Delete all states, once what they led to is recorded; the folder goes with the last of them."""
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp")]:
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@torch.no_grad()
def digest(pipe: DiffusionPipeline, settings: Mapping[str, Any], batch: Batch) -> str:
    """32 hex digits that name a search: the settings, the targets, and what the model answers to one fixed question.

    The answer (a noise prediction and an encoded word) also tells models apart that differ by a mask, a hook or a
    LoRA. It is compared to the last bit: on another machine or number of threads the search merely begins anew.
    """
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    found = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    dtype, device = pipe_denoiser(pipe).dtype, pipe.device
    noise = initial_latents(pipe, [torch.Generator().manual_seed(0)], size, dtype=torch.float32).to(device, dtype)
    asked = batch.starts.rows([0]).to(device, dtype)
    question = torch.tensor(500, device=device)
    answers = (predict_noise(pipe, noise, question, asked, size=size), encoded(pipe, ["a"]).prompt_embeds)
    for tensor in (*answers, batch.images, batch.starts.prompt_embeds, *batch.starts.companions.values()):
        found.update(str(tuple(tensor.shape)).encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    found.update(json.dumps(batch.texts).encode())
    return found.hexdigest()[:32]
