"""Noise of a scheduler's steps: whether it comes from the generators that a pipeline's caller hands over.

The loops of SD3, FLUX.1 and most pipelines with flow matching hand their scheduler no generator. A scheduler that adds
noise then draws it from torch's global generator, and no seed can draw the image again.
"""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from diffkit.errors import InputError
from diffkit.families import Pipeline, Scheduler, any_family_of, as_size

__all__ = ["draws_unseeded_noise", "global_generators", "hands_generator", "refuse_unseeded_noise"]


TRIAL_STEPS = 4


def refuse_unseeded_noise(pipe: Pipeline, size: tuple[int, int] | None = None) -> None:
    """Refuse a pipeline whose scheduler would draw noise from torch's global generator.

    Args:
        size: (height, width) in pixels, on which some families' timesteps depend; the model's own when None.

    Raises:
        InputError: its loop hands the scheduler no generator, and the scheduler adds noise.
    """
    scheduler, family, kind = pipe.scheduler, any_family_of(pipe), cast("Any", type(pipe))
    if hands_generator(kind) and "generator" in inspect.signature(scheduler.step).parameters:
        return
    settings = family.steps(pipe, TRIAL_STEPS, family.default_size(pipe) if size is None else as_size(size))
    if draws_unseeded_noise(scheduler, settings):
        name = type(scheduler).__name__
        raise InputError(
            f"This {name} adds noise while it denoises, and the loop of {family.pipeline} hands it no generator: the "
            f"noise would come from torch's global generator, and no seed could draw the image again. Set "
            f"pipe.scheduler to one that adds none (on the command line --scheduler): {family.schedulers[0]}, or "
            f"{name} without its sde, ancestral or stochastic sampling."
        )


def global_generators(device: torch.device) -> list[Tensor]:
    """The states of the generators from which noise without a seed comes on a CPU or a GPU.

    Example:
        >>> before = global_generators(torch.device("cpu"))
        >>> _ = torch.randn(1, generator=torch.Generator().manual_seed(0))
        >>> [torch.equal(*states) for states in zip(before, global_generators(torch.device("cpu")))]
        [True]
    """
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@functools.cache
def hands_generator(pipeline: Any) -> bool:
    """Whether the denoising loop of a pipeline class hands ``scheduler.step`` a generator.

    Read from the source of the first ``__call__`` of its ancestors that calls ``self.scheduler.step``; False where
    there is no source. What is unpacked counts as a generator: diffusers' ``prepare_extra_step_kwargs`` adds it.

    Example:
        >>> from diffusers import FluxPipeline, StableDiffusionPipeline
        >>> hands_generator(StableDiffusionPipeline), hands_generator(FluxPipeline)
        (True, False)
    """
    for ancestor in pipeline.__mro__:
        if "__call__" not in vars(ancestor):
            continue
        steps = _step_calls(vars(ancestor)["__call__"])
        if steps:
            return all(any(keyword.arg in (None, "generator") for keyword in call.keywords) for call in steps)
    return False


def _step_calls(function: Callable[..., Any]) -> list[ast.Call]:
    """The calls of ``scheduler.step`` in a function's source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).endswith("scheduler.step")]


class _Draws(TorchDispatchMode):
    """Notes whether this thread draws random numbers without a generator."""

    drawn = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and given.get("generator") is None:
            self.drawn = True
        return func(*args, **given)


_TRIED: dict[tuple[type, str], bool] = {}


def draws_unseeded_noise(scheduler: Scheduler, settings: Mapping[str, object]) -> bool:
    """Whether the steps of a scheduler that is handed no generator draw random numbers, by trying a copy of it.

    Args:
        settings: of ``set_timesteps``.

    Example:
        >>> from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler
        >>> [draws_unseeded_noise(kind(), {"num_inference_steps": 3})
        ...  for kind in (DDIMScheduler, EulerAncestralDiscreteScheduler)]
        [False, True]
    """
    key = (type(scheduler), str(dict(scheduler.config)))  # its JSON fails where a setting is a scheduler
    if key not in _TRIED:
        trial = copy.deepcopy(scheduler)
        try:
            trial.set_timesteps(**settings)
        except (ValueError, IndexError, TypeError, AssertionError):  # the pipeline's own call will say so
            return False
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _Draws() as draws:  # type: ignore[no-untyped-call]
            latents = torch.zeros(1, 4, 2, 2)
            for timestep in trial.timesteps.cpu():
                if hasattr(trial, "scale_model_input"):
                    trial.scale_model_input(latents, timestep)
                # the class's own, where a listener has wrapped the instance's
                latents = type(trial).step(trial, torch.zeros_like(latents), timestep, latents, return_dict=False)[0]
        _TRIED[key] = draws.drawn
    return _TRIED[key]
