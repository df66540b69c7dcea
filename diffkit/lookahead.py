"""Lookahead: how a suspended denoising will end, by a few big steps of the pipeline's own denoiser.

After some step a candidate has latents and an estimate of the clean ones. The estimate leads, for nothing, straight to
the noise level of a later step. From there k calls, at steps spaced equally in index, lead to a better estimate. The
last call covers two parts of what is left, the others one each: where little noise is left, estimates hardly change.
The stock pipeline runs them, with its own conditioning and guidance; only what ``scheduler.step`` does is replaced, by
the deterministic step of DPM-Solver++(2M), which learns from the estimate before how estimates change. The candidate
stays where it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.errors import InputError
from diffkit.families import Pipeline, Scheduler
from diffkit.noise_levels import has_unit_signal, latent_coefficients
from diffkit.parameterization import Coefficients, is_flow, x0_of_output
from diffkit.scheduler_window import Window, exclusive, window
from diffkit.segments import Candidate, Denoising, micro_batches, quiet, run_loop
from diffkit.solvers import solver_of
from diffkit.step_plan import check_pipeline, scheduled

__all__ = ["big_steps", "ddim_step", "extrapolated", "look_ahead"]


def big_steps(start: int, stop: int, calls: int) -> list[int]:
    """Indices of the steps at which the denoiser is called: equally spaced, with twice the space behind the last.

    The step ``start`` itself is not among them, unless there are as many calls as steps.

    Raises:
        InputError: there are not so many steps.

    Example:
        >>> big_steps(2, 20, 3), big_steps(2, 20, 1), big_steps(17, 20, 3)
        ([5, 9, 12], [8], [17, 18, 19])
    """
    left = stop - start
    if not 1 <= calls <= left:
        raise InputError(f"Cannot look ahead by {calls} calls: at least 1 and at most the {left} that are left.")
    if calls == left:
        return list(range(start, stop))
    return [start + part * left // min(calls + 2, left) for part in range(1, calls + 1)]


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


def extrapolated(x0: Tensor, before: Tensor, levels: Sequence[Coefficients]) -> Tensor:
    """The estimate that leads from a noise level to the next in second order, float32: DPM-Solver++(2M).

    ``x0 + h' / (2 h) (x0 - before)``, h and h' the last and the next difference of ``log(signal / noise)`` (Lu et al.
    2022, algorithm 2). It is ``x0`` after pure noise, whose logarithm is infinite, and after two estimates at the same
    level, as Heun's method makes them.

    Args:
        x0: estimate at the second of the levels.
        before: estimate at the first, shaped as it is.
        levels: signal and noise at which the two were made, and of where they lead.

    Example:
        >>> scalars = [(0.6, 0.8), (0.8, 0.6), (0.96, 0.28)]
        >>> levels = [Coefficients(torch.tensor(signal), torch.tensor(noise)) for signal, noise in scalars]
        >>> extrapolated(torch.tensor([1.0]), torch.tensor([0.0]), levels)
        tensor([1.8208])
    """
    first, second, third = ((level.signal / level.noise).log() for level in levels)
    if second == first:
        return x0.float()
    return x0.float() + (third - second) / (2 * (second - first)) * (x0.float() - before.float())


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
        DenoisingInterrupted: ``pipe._interrupt`` was set before the last call.
    """
    check_pipeline(pipe, denoising.extra, denoising.size)
    behind = {candidate.step for candidate in candidates}
    if len(behind) > 1 or 0 in behind:
        raise InputError(f"Candidates look ahead after the same step; these have {sorted(behind)} calls behind them.")
    if not candidates:
        return []
    start = candidates[0].step
    with scheduled(pipe, denoising.num_inference_steps, denoising.size, denoising.extra) as skipped:
        left_out = skipped + solver_of(pipe.scheduler).closing
        steps = big_steps(start, len(pipe.scheduler.timesteps) - left_out, calls)
        places = [skipped + step for step in (start - 1, start, steps[0])]
        before, now, then = (latent_coefficients(pipe.scheduler, place) for place in places)
    estimates: list[Tensor] = []
    with exclusive(pipe), quiet(pipe):
        for batch in micro_batches(candidates, denoising, conditioning):
            if steps[0] > start:
                batch = [_moved(candidate, now, then) for candidate in batch]
            padding = denoising.rows(len(batch)) - len(batch)
            report = functools.partial(_report, on_step, len(batch), padding)
            rows = [*batch, *[batch[-1]] * padding]
            estimate = torch.cat([row.x0 for row in rows if row.x0 is not None]).to(pipe._execution_device)
            with _jumping(pipe, steps, (estimate, before), report, skipped) as view:
                latents, _ = run_loop(pipe, rows, conditioning, denoising, call or pipe, view)
                view.check_complete(pipe)
            estimates += [latents[row : row + 1].clone() for row in range(len(batch))]
    return estimates


def _moved(candidate: Candidate, now: Coefficients, then: Coefficients) -> Candidate:
    """The candidate where its own estimate leads at another noise level."""
    if candidate.latents is None or candidate.x0 is None:
        raise InputError(f"Candidate {candidate.index} has no estimate to look ahead from.")
    latents = ddim_step(candidate.latents, candidate.x0, now, then)
    return replace(candidate, latents=latents.to(candidate.latents.dtype))


def _report(on_step: Callable[[int, int], None] | None, real: int, padding: int, x0: Tensor) -> None:
    if on_step is not None:
        on_step(real, padding)


@contextmanager
def _jumping(
    pipe: Pipeline,
    steps: Sequence[int],
    estimate: tuple[Tensor, Coefficients],
    report: Callable[[Tensor], None],
    skipped: int,
) -> Iterator[Window]:
    """The scheduler shows the big steps only, and its ``step`` leads from each to the next, from the last to x0."""
    with window(pipe, steps[0], None, {}, report, skipped=skipped) as view:
        view.jumps = list(steps)
        if view.prepared_again and hasattr(view.scheduler, "_step_index"):
            view.carried = {"_step_index": skipped + steps[0]}
        view.scheduler.__class__ = _jumping_class(type(view.scheduler), view, steps, estimate)
        yield view


def _jumping_class(windowed: Any, view: Window, steps: Sequence[int], estimate: tuple[Tensor, Coefficients]) -> type:
    position = 0

    def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not view.open:
            scaled: Tensor = windowed.scale_model_input(self, sample, *args, **kwargs)
            return scaled
        if not has_unit_signal(self):
            return sample
        with view.full_view():
            sigma = latent_coefficients(self, view.skipped + steps[position]).noise
        return sample / ((sigma**2 + 1) ** 0.5)

    @functools.wraps(windowed.step)  # pipelines look at the signature to see what they may hand over
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal position, estimate
        if not view.open or view.resume is not None:
            return windowed.step(self, model_output, timestep, sample, *args, **kwargs)
        with view.full_view():
            now = latent_coefficients(self, view.skipped + steps[position])
            x0 = result = _clean_estimate(self, model_output, sample, now)
            position += 1
            if position < len(steps):
                then = latent_coefficients(self, view.skipped + steps[position])
                if view.prepared_again and hasattr(self, "_step_index"):  # at which kept parts of a picture get noise
                    self._step_index = view.skipped + steps[position]
                result = ddim_step(sample, extrapolated(x0, estimate[0], (estimate[1], now, then)), now, then)
            estimate = x0, now
        view.steps += 1
        view.latents = result.to(sample.dtype)
        view.report(x0)
        return (view.latents, x0)

    members: dict[str, Any] = {"step": step, "__module__": windowed.__module__}
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
