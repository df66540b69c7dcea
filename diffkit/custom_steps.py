"""Steps of the caller's own choice: ``timesteps=`` or ``sigmas=`` in place of a number of steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Pipeline, Size, any_family_of

__all__ = ["ANGLES", "CUSTOM", "step_settings", "steps_in_words"]

CUSTOM = ("timesteps", "sigmas")
#: Keywords of SanaSprintPipeline that go to the scheduler, where None is a value too.
ANGLES = ("max_timesteps", "intermediate_timesteps")


def step_settings(
    pipe: Pipeline, num_inference_steps: int, size: Size, extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """What the pipeline gives to ``scheduler.set_timesteps``, its own shift of the noise levels included.

    Args:
        extra: further keyword arguments of the pipeline's call, with ``timesteps`` or ``sigmas`` where there are some.

    Raises:
        InputError: both are given, or something that is no list of numbers.

    Example:
        >>> from diffkit.loading import load_pipeline
        >>> pipe = load_pipeline("lab", device="cpu")
        >>> step_settings(pipe, 4, Size(64, 64)), step_settings(pipe, 4, Size(64, 64), {"timesteps": [900, 500, 100]})
        ({'num_inference_steps': 4}, {'timesteps': [900, 500, 100]})
    """
    settings = any_family_of(pipe).steps(pipe, num_inference_steps, size)
    settings |= {name: extra[name] for name in ANGLES if extra and name in extra}
    given = _given(extra)
    if not given:
        return settings
    if len(given) > 1:
        raise InputError("Give timesteps or sigmas, not both.")
    [(name, value)] = given.items()
    if not isinstance(value, list | tuple | np.ndarray | Tensor) or not len(value):
        raise InputError(f"{name} must be a list of numbers, one for each step; got {value!r}.")
    return {name: value, **{key: shift for key, shift in settings.items() if key == "mu"}}


def steps_in_words(num_inference_steps: int, extra: Mapping[str, object] | None = None) -> str:
    """What a scheduler is asked for, for messages."""
    given = _given(extra)
    return f"these {next(iter(given))}" if given else f"{num_inference_steps} steps"


def _given(extra: Mapping[str, object] | None) -> dict[str, object]:
    return {name: extra[name] for name in CUSTOM if extra and extra.get(name) is not None}
