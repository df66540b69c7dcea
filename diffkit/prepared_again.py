"""Resume the denoising of a pipeline that begins from a picture: the stock pipeline prepares once more, and goes on.

Image-to-image and inpainting draw more than the initial noise before their loop: a sample of the picture's posterior in
the VAE, noise for the part that is kept, latents of the masked picture. A part of a denoising that resumes lets the
pipeline prepare all of that again, from the generators' first state. The first step of its loop is idle: the denoiser
and the ControlNet compute nothing, the scheduler hands out the latents at which the denoising stopped, and the
generators get the state that they had there. What the loop does beside, such as putting back the part of the picture
that is kept, the stock pipeline does itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Family, Pipeline, any_family_of
from diffkit.families.base import has_strength, stock_default
from diffkit.scheduler_window import Window

__all__ = [
    "DenoiserCall",
    "idle",
    "pictures_encoded_once",
    "remembering",
    "repeated",
    "resuming",
    "skipped_calls",
]


_ENCODED = "_encoded_pictures"
PICTURES = 8  # that are kept at most


class DenoiserCall(NamedTuple):
    """A call of a pipeline's denoiser or ControlNet: the pipeline's attribute, and the arguments."""

    name: str
    positional: tuple[object, ...]
    named: Mapping[str, object]


class _StandIn:
    """In the place of a pipeline's model, for which it passes."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._module)


class _Idle(_StandIn):
    """In the place of a denoiser or ControlNet: it computes nothing.

    A denoiser gives back the latents, a ControlNet nothing to add. Another pipeline that was made with it meanwhile is
    refused, and has the module itself afterwards.
    """

    def __init__(self, name: str, module: Any, calls: list[DenoiserCall]) -> None:
        super().__init__(module)
        self._name, self._calls = name, calls
        self._asleep, self._thread = True, threading.get_ident()

    def _wake(self) -> Any:
        self._asleep = False
        return self._module

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        if not self._asleep:
            outputs: tuple[Any, ...] = self._module(*args, **kwargs)
            return outputs
        if threading.get_ident() != self._thread:
            name = type(self._module).__name__
            raise InputError(f"This {name} is in the middle of a search in another thread; wait until it has ended.")
        self._calls.append(DenoiserCall(self._name, args, kwargs))
        latents = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        return ([], latents) if self._name == "controlnet" else (latents,)


class _Remembering(_StandIn):
    """In the place of an autoencoder: it encodes the same picture once."""

    def __init__(self, module: Any, encoded: list[tuple[Tensor, torch.dtype, Any]]) -> None:
        super().__init__(module)
        self._encoded = encoded

    def encode(self, images: Tensor, **options: Any) -> Any:
        """What the autoencoder returns, from which samples are drawn anew each time."""
        if options:
            return self._module.encode(images, **options)
        precision = self._module.dtype
        for seen, dtype, output in self._encoded:
            if dtype == precision and seen.dtype == images.dtype and torch.equal(seen, images):
                return output
        output = self._module.encode(images)
        self._encoded[:] = [*self._encoded[1 - PICTURES :], (images, precision, output)]
        return output


@contextmanager
def pictures_encoded_once(pipe: Pipeline) -> Iterator[None]:
    """Each picture is encoded once meanwhile, however often the pipeline prepares it; no weights may change."""
    attributes = pipe.__dict__
    if _ENCODED in attributes:
        yield
        return
    attributes[_ENCODED] = []
    try:
        yield
    finally:
        del attributes[_ENCODED]


@contextmanager
def remembering(pipe: Pipeline) -> Iterator[None]:
    """One call of a pipeline inside of :func:`pictures_encoded_once`."""
    attributes = pipe.__dict__
    if _ENCODED not in attributes or not any_family_of(pipe).pictures:
        yield
        return
    vae = attributes["vae"]
    attributes["vae"] = _Remembering(vae, attributes[_ENCODED])
    try:
        yield
    finally:
        attributes["vae"] = vae


@contextmanager
def idle(pipe: Pipeline) -> Iterator[tuple[list[DenoiserCall], Callable[[], None]]]:
    """The pipeline's denoiser and its ControlNet compute nothing.

    Yields:
        Their calls so far, and what wakes them up before the block ends.
    """
    attributes = pipe.__dict__
    names = [name for name in (any_family_of(pipe).denoiser, "controlnet") if name in attributes]
    calls: list[DenoiserCall] = []
    asleep = {name: _Idle(name, attributes[name], calls) for name in names}

    def wake() -> None:
        attributes.update({name: module._wake() for name, module in asleep.items()})

    attributes.update(asleep)
    try:
        yield calls, wake
    finally:
        wake()


@contextmanager
def resuming(
    pipe: Pipeline,
    latents: Sequence[Tensor],
    reached: Sequence[torch.Generator],
    generators: Sequence[torch.Generator],
    view: Window,
) -> Iterator[None]:
    """The first step of the loop is idle, in a part that resumes and lets the pipeline prepare again.

    Args:
        latents: one row of each candidate, where its denoising stopped.
        reached: the candidates' generators as they were there.
        generators: those of the call, which begin in their first state; they are changed.
        view: what shows the part's steps.
    """
    if not view.prepared_again or not view.start:
        yield
        return
    rows = torch.cat(list(latents)).to(pipe._execution_device)
    with idle(pipe) as (_, wake):

        def resume() -> Tensor:
            wake()
            for generator, state in zip(generators, reached, strict=True):
                generator.set_state(state.get_state())
            return rows

        view.resume = resume
        yield


def skipped_calls(pipe: Pipeline, num_inference_steps: int | None, options: Mapping[str, object] | None) -> int:
    """How many calls of the denoiser a pipeline leaves out by its ``strength``, of the scheduler's present timesteps.

    Args:
        num_inference_steps: None where the timesteps are given as a list.
        options: keyword arguments of the pipeline's call, with ``strength`` where it is given.

    Raises:
        InputError: strength is not in [0, 1], or leaves no step.
    """
    family = any_family_of(pipe)
    if not has_strength(family):
        return 0
    strength = (options or {}).get("strength", stock_default(family, "strength"))
    if isinstance(strength, bool) or not isinstance(strength, int | float | np.number) or not 0 <= strength <= 1:
        raise InputError(f"strength must lie between 0 and 1, got {strength!r}.")
    every = len(pipe.scheduler.timesteps)
    steps = every if num_inference_steps is None else num_inference_steps
    left, _ = pipe.get_timesteps(steps, strength, pipe._execution_device)
    if not len(left):
        raise InputError(f"A strength of {strength} leaves none of {steps} steps; give a higher one, or more steps.")
    return every - len(left)


def repeated(family: Family, options: Mapping[str, object], rows: int) -> dict[str, object]:
    """Keyword arguments for ``rows`` candidates, each of which draws from its own generator: a picture for each."""
    given = dict(options)
    if rows == 1 or not family.pictures or not family.prepared_again:
        return given
    name = family.pictures[0]
    picture = given[name]
    if isinstance(picture, Sequence):
        given[name] = [*picture] * rows
    elif isinstance(picture, Tensor) and picture.ndim == 4:
        given[name] = torch.cat([picture] * rows)
    elif isinstance(picture, np.ndarray) and picture.ndim == 4:
        given[name] = np.concatenate([picture] * rows)
    else:
        given[name] = [picture] * rows
    return given
