"""Steps of a generation: the denoiser's first input without generating, and a callback before every step."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from diffkit.families import any_family_of, as_size

if TYPE_CHECKING:
    from diffkit.families import Pipeline, Scheduler

__all__ = ["FirstInput", "begin", "before_steps", "spaced"]


class FirstInput(NamedTuple):
    """Input of the denoiser at the first step: latents as it takes them, and the timestep, a scalar tensor."""

    latents: Tensor
    timestep: Tensor


def spaced(pipe: Pipeline, steps: int, size: tuple[int, int] | None = None) -> Scheduler:
    """A copy of the pipeline's scheduler, set to ``steps`` as the pipeline sets it; the pipeline is left unchanged.

    Args:
        size: (height, width) in pixels, on which some families' timesteps depend; the model's own when None.
    """
    family, scheduler = any_family_of(pipe), copy.deepcopy(pipe.scheduler)
    asked = family.steps(pipe, steps, family.default_size(pipe) if size is None else as_size(size))
    scheduler.set_timesteps(device=pipe.device, **asked)
    return scheduler


def begin(pipe: Pipeline, noise: Tensor, steps: int, size: tuple[int, int] | None = None) -> FirstInput:
    """Input of the denoiser at the first of ``steps`` steps, from unit noise."""
    scheduler = spaced(pipe, steps, size)
    timestep = scheduler.timesteps[0]
    latents = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    if hasattr(scheduler, "scale_model_input"):
        latents = scheduler.scale_model_input(latents, timestep)
    return FirstInput(latents, timestep)


@contextmanager
def before_steps(pipe: Pipeline, callback: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``callback(timestep, latents)`` before every step of the pipeline's scheduler inside the ``with`` block.

    Latents are as the loop carries them, not yet scaled for the denoiser.
    """
    scheduler = pipe.scheduler
    own, step = vars(scheduler).get("step"), scheduler.step

    @functools.wraps(step)  # pipelines look at the signature to see what they may hand over
    def step_after_callback(
        model_output: Tensor, timestep: Tensor, sample: Tensor, *rest: object, **named: object
    ) -> Any:
        callback(timestep, sample)
        return step(model_output, timestep, sample, *rest, **named)

    scheduler.step = step_after_callback
    try:
        yield
    finally:
        del scheduler.step  # the class's own method shows again, or another listener's
        if own is not None:
            scheduler.step = own
