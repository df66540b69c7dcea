"""A checkpoint of a training run: one file, replaced atomically, from which training resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.parallel import gather
from diffkit.runs.files import write_bytes_atomically

if TYPE_CHECKING:
    from memorization.mitigation.adversarial.trigger_pool import TriggerPool

__all__ = ["Checkpoint", "restore", "save"]

NAME = "checkpoint.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Checkpoint(NamedTuple):
    """The progress of training.

    Attributes:
        update: updates done, of which the weights are the result.
        history: a row a checkpoint: update, losses, validation loss.
        seconds: spent training, summed over resumed runs.
        stopped: why it ended early, or None.
    """

    update: int
    history: list[dict[str, Any]]
    seconds: float
    stopped: str | None


def save(
    folder: Path,
    accelerator: Accelerator,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    pool: TriggerPool,
    state: Checkpoint,
) -> None:
    """Replace the checkpoint in a run's folder; every process calls it, the first writes."""
    pools = gather([{name: value.cpu() for name, value in pool.state.tensors().items()}])
    if accelerator.is_main_process:
        tensors = {f"weight/{name}": value.detach().cpu() for name, value in weights.items()}
        for name, parameter in weights.items():
            tensors |= {f"{moment}/{name}": optimizer.state[parameter][moment].cpu() for moment in MOMENTS}
        for rank, part in enumerate(pools):
            tensors |= {f"pool{rank}/{name}": value for name, value in part.items()}
        metadata = {"state": json.dumps(state._asdict(), allow_nan=False), "processes": str(len(pools))}
        data = serialize({name: value.contiguous() for name, value in tensors.items()}, metadata=metadata)
        write_bytes_atomically(folder / NAME, data)
    accelerator.wait_for_everyone()


def restore(
    folder: Path,
    accelerator: Accelerator,
    weights: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    pool: TriggerPool,
) -> Checkpoint | None:
    """Load a run folder's checkpoint into weights, optimiser and pool; None, and nothing changed, without one.

    Raises:
        InputError: it was made by another number of processes, which divide the images differently.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    with safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata()
        if int(metadata["processes"]) != accelerator.num_processes:
            raise InputError(
                f"{path} was made by {metadata['processes']} processes, and now there are {accelerator.num_processes}; "
                "resume with as many, or choose another --out."
            )
        with torch.no_grad():
            for name, parameter in weights.items():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
                moments = {moment: file.get_tensor(f"{moment}/{name}") for moment in MOMENTS}
                optimizer.state[parameter] = {
                    moment: value if moment == "step" else value.to(parameter) for moment, value in moments.items()
                }
            for name, value in pool.state.tensors().items():
                kept: Tensor = file.get_tensor(f"pool{accelerator.process_index}/{name}")
                pool.state.put(name, kept.to(value.device))
    return Checkpoint(**json.loads(metadata["state"]))
