"""Lookahead: how a suspended denoising will end, by a few big steps of the pipeline's own denoiser.

From a candidate's latents after some step, k calls at steps spaced equally in index over what is left lead to an
estimate of its clean latents. The stock pipeline runs them, with its own conditioning and guidance; only what
``scheduler.step`` does is replaced, by the deterministic step of DDIM (Song et al. 2021, equation 12 with sigma 0). In
noise over signal, and on the straight lines of flow models, that is Euler's step (Karras et al. 2022, equation 4). The
candidate stays where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.errors import InputError
from diffkit.families import Pipeline, Scheduler
from diffkit.parameterization import Coefficients, is_flow, x0_of_output
from diffkit.scheduler_window import Window, window
from diffkit.segments import Candidate, Denoising, check_suspendable, quiet, run_loop
from diffkit.solvers import latent_coefficients

__all__ = ["big_steps", "ddim_step", "look_ahead"]


def big_steps(start: int, stop: int, calls: int) -> list[int]:
    """Indices of the steps at which the denoiser is called: the first is ``start``, the others follow equally spaced.

    Raises:
        InputError: there are not so many steps.

    Example:
        >>> big_steps(2, 20, 3)
        [2, 8, 14]
    """
    left = stop - start
    if not 1 <= calls <= left:
        raise InputError(f"Cannot look ahead by {calls} calls: at least 1 and at most the {left} that are left.")
    return [start + part * left // calls for part in range(calls)]


def ddim_step(latents: Tensor, x0: Tensor, now: Coefficients, then: Coefficients) -> Tensor:
    """Latents at another noise level, float32: ``signal' x0 + noise' epsilon``, epsilon as latents and x0 imply it.

    Args:
        latents: ``signal x0 + noise epsilon``, of any shape.
        x0: estimate of the clean latents, shaped as they are.
        now, then: signal and noise of the latents and of the result, scalars.

    Example:
        >>> one, half = torch.tensor(1.0), torch.tensor(0.5)
        >>> ddim_step(torch.tensor([3.0]), torch.tensor([1.0]), Coefficients(half, half), Coefficients(one, 0 * one))
        tensor([1.])
    """
    latents, x0 = latents.float(), x0.float()
    return then.signal * x0 + then.noise / now.noise * (latents - now.signal * x0)


@torch.no_grad()
def look_ahead(
    pipe: Pipeline,
    candidates: Sequence[Candidate],
    conditioning: Conditioning,
    denoising: Denoising,
    calls: int,
    *,
    call: Callable[..., tuple[Tensor, object]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Estimates (1, ...) of the clean latents of candidates in mid-denoising, all after the same step.

    Nothing of a candidate changes: not its latents, its solver's state or its generator, from which nothing is drawn.

    Args:
        conditioning, call, on_step: as :func:`diffkit.segments.run_segment` takes them.
        calls: of the denoiser, with guidance as in the pipeline's own steps.

    Raises:
        InputError: the candidates are not in mid-denoising, or fewer calls than that are left.
    """
    check_suspendable(pipe, denoising.extra, denoising.size)
    steps = {candidate.step for candidate in candidates}
    if len(steps) > 1 or 0 in steps:
        raise InputError(f"Candidates look ahead after the same step; these have {sorted(steps)} calls behind them.")
    estimates: list[Tensor] = []
    with quiet(pipe):
        for first in range(0, len(candidates), denoising.micro_batch):
            batch = candidates[first : first + denoising.micro_batch]
            padding = denoising.rows(len(batch)) - len(batch)
            report = functools.partial(_report, on_step, len(batch), padding)
            with _jumping(pipe.scheduler, batch[0].step, calls, report):
                rows = [*batch, *[batch[-1]] * padding]
                latents, _ = run_loop(pipe, rows, conditioning, denoising, call or pipe)
            estimates += [latents[row : row + 1].clone() for row in range(len(batch))]
    return estimates


def _report(on_step: Callable[[int, int], None] | None, real: int, padding: int, x0: Tensor) -> None:
    if on_step is not None:
        on_step(real, padding)


@contextmanager
def _jumping(scheduler: Scheduler, start: int, calls: int, report: Callable[[Tensor], None]) -> Iterator[None]:
    """The scheduler shows the big steps only, and its ``step`` leads from each to the next, from the last to x0."""
    with window(scheduler, start, None, {}, report) as view:
        scheduler.__class__ = _jumping_class(type(scheduler), view, start, calls)
        yield


def _jumping_class(windowed: Any, view: Window, start: int, calls: int) -> type:
    position = 0

    def timesteps(self: Any) -> Any:
        shown = windowed.timesteps.fget(self)
        return shown if view.inside else shown[big_steps(0, len(shown), calls)]

    def index(scheduler: Any, at: int) -> int:
        """Of the big step among all steps."""
        return big_steps(start, len(scheduler.__dict__["timesteps"]), calls)[at]

    def scale_model_input(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._step_index = index(self, position)
        return windowed.scale_model_input(self, *args, **kwargs)

    @functools.wraps(windowed.step)  # pipelines look at the signature to see what they may hand over
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal position
        with view.full_view():
            now = latent_coefficients(self, index(self, position))
            x0 = _clean_estimate(self, model_output, sample, now)
            position += 1
            result = x0
            if position < calls:
                result = ddim_step(sample, x0, now, latent_coefficients(self, index(self, position)))
        view.report(x0)
        return (result.to(sample.dtype), x0)

    members: dict[str, Any] = {
        "timesteps": property(timesteps, windowed.timesteps.fset),
        "step": step,
        "__module__": windowed.__module__,
    }
    if hasattr(windowed, "scale_model_input"):
        members["scale_model_input"] = functools.wraps(windowed.scale_model_input)(scale_model_input)
    return type(windowed.__name__, (windowed,), members)


def _clean_estimate(scheduler: Scheduler, output: Tensor, latents: Tensor, at: Coefficients) -> Tensor:
    """x0, float32, clipped or thresholded where the scheduler's configuration says so."""
    norm = 1.0 if is_flow(scheduler) else torch.hypot(at.signal, at.noise)
    x0 = x0_of_output(scheduler, output, latents.float() / norm, Coefficients(at.signal / norm, at.noise / norm))
    if scheduler.config.get("thresholding"):
        thresholded: Tensor = scheduler._threshold_sample(x0)
        return thresholded
    reach = scheduler.config.get("clip_sample_range", 1.0) if scheduler.config.get("clip_sample") else None
    return x0 if reach is None else x0.clamp(-reach, reach)
