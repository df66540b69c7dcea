"""A training loop's state in one safetensors file: weights, AdamW's moments, where it stands. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.runs.files import write_bytes_atomically

__all__ = ["Place", "load_checkpoint", "save_checkpoint"]

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Place(NamedTuple):
    """Where training goes on: the stage, the steps already done in it, and their losses."""

    stage: int = 0
    step: int = 0
    losses: tuple[float, ...] = ()


def save_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, place: Place
) -> None:
    """Replace the file at ``path`` at once; float32 weights and moments are kept exactly."""
    tensors = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}/{name}": state[moment].detach() for moment in MOMENTS if moment in state}
    metadata = {"stage": str(place.stage), "step": str(place.step), "losses": json.dumps(place.losses)}
    copies = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
    write_bytes_atomically(path, save(copies, metadata=metadata))


def load_checkpoint(
    path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Place | None:
    """Put weights and moments back and say where training stood; None without a file.

    Raises:
        InputError: the file is damaged or belongs to another network.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weights/{name}"])
                kept = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS if f"{moment}/{name}" in tensors}
                if kept:  # AdamW keeps its count of steps on the CPU
                    moved = {key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()}
                    optimizer.state[parameter] = moved
        return Place(int(metadata["stage"]), int(metadata["step"]), tuple(json.loads(metadata["losses"])))
    except (SafetensorError, KeyError, RuntimeError, OSError) as error:
        raise InputError(f"The checkpoint {path} cannot be read ({error}); choose another --out.") from error
