"""At which training step a checkpoint was written, by the file's own metadata or its name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from diffkit.errors import InputError
from diffkit.lora import USUAL, find_lora

__all__ = ["TrainingSteps", "Unit", "step_in_name", "training_steps"]

Unit = Literal["step", "epoch", "checkpoint"]

#: Endings of names: sd-scripts counts steps in `-step00000500` and epochs in six digits, diffusers writes
#: `checkpoint-500`, ai-toolkit `_000000500`.
ENDINGS: tuple[tuple[Unit, re.Pattern[str]], ...] = (
    ("step", re.compile(r"-step(\d+)$")),
    ("epoch", re.compile(r"-(\d{6})$")),
    ("step", re.compile(r"[-_](\d+)$")),
)


class TrainingSteps(NamedTuple):
    """A step for each checkpoint, what it counts, and where it was read."""

    values: list[int]
    unit: Unit
    source: Literal["given", "metadata", "names", "order"]


def training_steps(checkpoints: Sequence[str], given: Sequence[int] | None = None) -> TrainingSteps:
    """The training steps of LoRAs: as given, else by their metadata (sd-scripts'), else by their names.

    Where no name has a number, the checkpoints are numbered 1, 2, ... in the order given.

    Args:
        checkpoints: as :func:`diffkit.lora.find_lora` takes them.
        given: a step for each.

    Raises:
        InputError: fewer than two checkpoints, one that does not exist, a step that stands twice or is missing for
            some, or steps and epochs side by side.
    """
    if len(checkpoints) < 2:
        raise InputError("A trend needs at least two checkpoints: --lora FIRST SECOND ...")
    if given is not None:
        if len(given) != len(checkpoints) or min(given) < 0:
            numbers = ",".join(map(str, given))
            raise InputError(f"Expected a training step for each of {len(checkpoints)} checkpoints, got {numbers}.")
        return _refuse_repeats(checkpoints, TrainingSteps(list(given), "step", "given"))
    recorded = [_recorded_step(checkpoint) for checkpoint in checkpoints]
    steps = [step for step in recorded if step is not None]
    if len(steps) == len(checkpoints):
        return _refuse_repeats(checkpoints, TrainingSteps(steps, "step", "metadata"))
    return _refuse_repeats(checkpoints, _by_names(checkpoints))


def _by_names(checkpoints: Sequence[str]) -> TrainingSteps:
    named = [step_in_name(checkpoint) for checkpoint in checkpoints]
    numbers = [value for value in named if value is not None]
    if not numbers:
        return TrainingSteps(list(range(1, len(checkpoints) + 1)), "checkpoint", "order")
    units = sorted({unit for _, unit in numbers}, reverse=True)
    if len(numbers) < len(named):
        without = checkpoints[named.index(None)]
        raise InputError(f"The name of {without!r} has no training step, others have: add --training-steps 100,200,...")
    if len(units) > 1:
        counted = " and ".join(f"{unit}s" for unit in units)
        raise InputError(f"The checkpoints' names count {counted}: add --training-steps 100,200,...")
    return TrainingSteps([step for step, _ in numbers], units[0], "names")


def step_in_name(checkpoint: str) -> tuple[int, Unit] | None:
    """The number at the end of a checkpoint's name and what it counts; None without one.

    Example:
        >>> step_in_name("runs/checkpoint-500/pytorch_lora_weights.safetensors"), step_in_name("dog-000010.safetensors")
        ((500, 'step'), (10, 'epoch'))
    """
    path = Path(checkpoint)
    name = path.parent.name if path.name == USUAL else path.name.removesuffix(".safetensors")
    for unit, ending in ENDINGS:
        if match := ending.search(name):
            return int(match[1]), unit
    return None


def _recorded_step(checkpoint: str) -> int | None:
    """The step that sd-scripts writes into a file's metadata."""
    from safetensors import SafetensorError, safe_open

    path = find_lora(checkpoint)
    try:
        with safe_open(path, framework="pt") as file:
            step = (file.metadata() or {}).get("ss_steps", "")
    except (OSError, SafetensorError) as error:
        raise InputError(f"The LoRA {checkpoint!r} is no sound .safetensors file: {error}.") from error
    return int(step) if step.isdecimal() else None


def _refuse_repeats(checkpoints: Sequence[str], steps: TrainingSteps) -> TrainingSteps:
    for index, value in enumerate(steps.values):
        first = steps.values.index(value)
        if first < index:
            raise InputError(
                f"{checkpoints[first]!r} and {checkpoints[index]!r} are both of {steps.unit} {value} by their "
                f"{steps.source}: leave one out, or add --training-steps 100,200,..."
            )
    return steps
