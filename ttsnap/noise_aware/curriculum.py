"""Settings of a distillation, and its stages from clean to noisy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from diffkit.errors import InputError
from ttsnap.noise_aware.backends import BACKENDS, Backend
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["Loss", "DistillSettings", "Stage", "choose_steps", "curriculum"]

Loss = Literal["mse", "preference"]


@dataclass(frozen=True)
class DistillSettings:
    """Settings of a distillation.

    Attributes:
        backend: conditioned, full or lora.
        loss: mse, or preference (Bradley-Terry within prompts).
        standardise: bring every prompt's targets to one mean and spread, so that only the ranking is learned.
        steps: recorded steps to train on; None for all but the last, whose estimate is the finished image.
        stages: of the curriculum of ``conditioned``; the others have one a level.
        epochs: passes over the training images in a stage, each image at one level a pass.
        steps_per_stage: instead of epochs.
        learning_rate: at a stage's beginning.
        batch: images a step, over all processes.
        accumulate: parts a process does its share of a batch in.
        held_out: share of the prompts that is kept for evaluation.
        temperature: of the preference loss, in standard deviations within prompts.
        soft: whether preferences are graded by the difference in reward, or hard.
        rank: of the adapters of ``lora``.
        mixed_precision: no, bf16 or fp16.
        checkpoint_every: steps.
        seed: every random draw follows from it, the stage and the step.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> DistillSettings(backend="lora").backend
        'lora'
    """

    backend: Backend = "conditioned"
    loss: Loss = "preference"
    standardise: bool = False
    steps: tuple[int, ...] | None = None
    stages: int = 4
    epochs: float = 4.0
    steps_per_stage: int | None = None
    learning_rate: float = 3e-4
    batch: int = 64
    accumulate: int = 1
    held_out: float = 0.15
    temperature: float = 0.5
    soft: bool = True
    rank: int = 8
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS or self.loss not in ("mse", "preference"):
            raise InputError(f"Expected a back-end of {', '.join(BACKENDS)} and a loss mse or preference, got {self}.")
        above_zero = ("stages", "epochs", "learning_rate", "batch", "accumulate", "temperature", "rank",
                      "checkpoint_every")  # fmt: skip
        for name in above_zero:
            if not getattr(self, name) > 0:
                raise InputError(f"The setting {name} of the distillation must be above 0, got {getattr(self, name)}.")
        if self.steps_per_stage is not None and self.steps_per_stage < 1:
            raise InputError(f"A stage has at least one step, got {self.steps_per_stage}.")


class Stage(NamedTuple):
    """A stage: the levels it trains, 0 being the cleanest, and those of them that no stage trained before."""

    opened: tuple[int, ...]
    fresh: tuple[int, ...]


def curriculum(backend: Backend, levels: int, stages: int) -> list[Stage]:
    """Stages from clean to noisy; ``conditioned`` opens nearly equal groups of levels, the others a level a stage."""
    if backend != "conditioned":
        return [Stage((level,), (level,)) for level in range(levels)]
    groups = np.array_split(np.arange(levels), min(stages, levels))
    return [Stage(tuple(range(int(group[-1]) + 1)), tuple(map(int, group))) for group in groups]


def choose_steps(trajectories: Trajectories, steps: Sequence[int] | None) -> list[int]:
    """Recorded steps from clean to noisy.

    Raises:
        InputError: one was not recorded, or its latents hold no signal or no noise.
    """
    chosen = (
        [step for step in trajectories.steps if step != len(trajectories.all_sigmas) - 1]
        if steps is None
        else list(steps)
    )
    missing = sorted(set(chosen) - set(trajectories.steps))
    if missing or not chosen:
        raise InputError(
            f"Steps {missing} were not recorded in {trajectories.folder}; recorded are {list(trajectories.steps)}."
        )
    log_snrs = dict(zip(trajectories.steps, trajectories.log_snrs, strict=True))
    unusable = [step for step in chosen if not math.isfinite(log_snrs[step])]
    if steps is not None and unusable:
        raise InputError(f"Steps {unusable} have latents without signal or without noise; leave them out.")
    return sorted(set(chosen) - set(unusable), key=lambda step: -log_snrs[step])
