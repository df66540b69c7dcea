"""Suspend and resume the denoising of a stock pipeline: run candidates through steps [a, b) of T.

Nothing of a pipeline is written again here. The unmodified pipeline is called with a copy of its scheduler, whose class
shows only ``timesteps[a:b]`` to the pipeline's loop, starts from an initial sigma of 1 when a > 0, puts the solver's
state back after ``set_timesteps`` (which resets it), and records x0. Inside ``step`` the full timesteps are visible,
because multistep solvers consult their number.

Steps are calls of the denoiser, counted from 0: most schedulers make ``num_inference_steps`` of them, PNDM makes more,
and those that call it twice a step (Heun, KDPM2) make one less than twice as many. A denoising can be cut after each.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.custom_steps import ANGLES
from diffkit.errors import InputError
from diffkit.families import Pipeline, Size, VideoSize, any_family_of, as_size, stock_class
from diffkit.families.base import has_strength, keywords_of
from diffkit.interruption import DenoisingInterrupted, is_interrupted
from diffkit.prepared_again import remembering, repeated, resuming
from diffkit.scheduler_window import Window, exclusive, window
from diffkit.solvers import SOLVERS, UNCUT, Solver, State, gather_states, solver_of, split_state
from diffkit.step_caches import step_cache
from diffkit.step_plan import check_pipeline, scheduled, whole_only

__all__ = [
    "Candidate",
    "Denoising",
    "alone_only",
    "micro_batches",
    "quiet",
    "run_loop",
    "run_segment",
]

SIDES = ("height", "width")


@dataclass(frozen=True)
class Candidate:
    """A suspended denoising in host memory.

    Attributes:
        index: the candidate's own number among those of its prompt.
        prompt: row of the conditioning it belongs to.
        generator: its own source of noise, positioned where the denoising stopped; never changed in place.
        seed: what seeded the generator; None for a generator of the user's.
        step: how many denoiser calls it has behind it.
        latents: (1, C, h, w), or (1, tokens, C) where the pipeline packs them, in its precision. Before the first step
            the initial noise, standard normal, or None for what the generator draws.
        x0: shaped as ``latents``, the latest estimate of the clean latents; None before the first step.
        state: what its solver carries.
        first: the generator as it was before the first step, where a pipeline prepares again from there.
    """

    index: int
    prompt: int
    generator: torch.Generator
    seed: int | None = None
    step: int = 0
    latents: Tensor | None = None
    x0: Tensor | None = None
    state: State = field(default_factory=dict)
    first: torch.Generator | None = None


@dataclass(frozen=True)
class Denoising:
    """Everything about a denoising that is the same for all its segments and candidates.

    Attributes:
        num_inference_steps: T, as the pipeline takes it.
        guidance_scale: classifier-free guidance, for which the conditioning has negatives, or what the denoiser is
            told; None for the pipeline's own.
        height, width: pixels; None for the pipeline's own size.
        frames: of a video; None where images are made. The pipeline's ``num_frames`` goes to ``extra``.
        eta: DDIM's share of noise.
        micro_batch: how many candidates run at once.
        padding: how the last micro-batch is filled up by repetition. "full", to the same size: a candidate's result
            depends on nothing but its seed and that size. "least", to the next power of two: a few survivors cost what
            a few cost, but their last bits may change with their number.
        extra: further keyword arguments of the pipeline, the same for every candidate.
    """

    num_inference_steps: int
    guidance_scale: float | None = 7.5
    height: int | None = None
    width: int | None = None
    eta: float = 0.0
    micro_batch: int = 16
    padding: Literal["full", "least"] = "full"
    extra: Mapping[str, object] = field(default_factory=dict)
    frames: int | None = None

    def rows(self, candidates: int) -> int:
        """How many rows the denoiser runs for so many candidates, padding included, at each step."""
        whole, rest = divmod(candidates, self.micro_batch)
        return whole * self.micro_batch + (self._filled(rest) if rest else 0)

    @property
    def size(self) -> Size | None:
        """(height, width) in pixels, of a video with its frames; None for the pipeline's own."""
        if not self.height or not self.width:
            return None
        return Size(self.height, self.width) if self.frames is None else VideoSize(self.height, self.width, self.frames)

    def _filled(self, rest: int) -> int:
        return self.micro_batch if self.padding == "full" else min(self.micro_batch, 1 << (rest - 1).bit_length())


@torch.no_grad()
def run_segment(
    pipe: Pipeline,
    candidates: Sequence[Candidate],
    conditioning: Conditioning,
    denoising: Denoising,
    start: int,
    stop: int,
    *,
    call: Callable[..., tuple[Tensor, object]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    on_estimate: Callable[[int, Tensor], None] | None = None,
) -> list[Candidate]:
    """Run every candidate from step ``start`` to before step ``stop``; returns new candidates in the same order.

    A candidate's result depends on its own seed and the size of the micro-batch, not on the other candidates (with
    ``padding="least"``, in its last bits, on how many there are).

    Args:
        conditioning: rows that the candidates' ``prompt`` points to.
        call: what runs the stock pipeline; ``pipe`` itself by default. A pipeline whose own ``__call__`` runs segments
            gives its parent's.
        on_step: called after each step of each micro-batch with the number of rows run for candidates and for padding.
        on_estimate: called after each step of each micro-batch with the step's index and x0 (rows, C, h, w) of the
            micro-batch's candidates, on the pipeline's device; it must not change it.

    Raises:
        InputError: the pipeline or its scheduler cannot be suspended, or a candidate is not at ``start``. A denoising
            that is not cut, from 0 to its end, may have any scheduler, unless there is ``on_estimate``.
        DenoisingInterrupted: ``pipe._interrupt`` was set before all were at ``stop``.
    """
    check_pipeline(pipe, denoising.extra, denoising.size)
    if not 0 <= start < stop:
        raise InputError(f"Expected steps 0 <= start < stop, got start {start} and stop {stop}.")
    for candidate in candidates:
        if candidate.step != start:
            raise InputError(f"Candidate {candidate.index} is at step {candidate.step}, not {start}.")
    if len({candidate.latents is None for candidate in candidates}) > 1:
        raise InputError("Some candidates have latents and some have none; give initial noise to all or to none.")
    solver = _solver(pipe, denoising, (start, stop), estimates=on_estimate is not None)
    part = _Part(start, stop, solver, _skipped(pipe, denoising))
    batches = list(micro_batches(candidates, denoising, conditioning))
    _check_alone(pipe, batches, denoising)
    done: list[Candidate] = []
    with exclusive(pipe), quiet(pipe):
        for batch in batches:
            if done and is_interrupted(pipe):
                raise DenoisingInterrupted(pipe)
            taps = _Taps(on_step, on_estimate, len(batch), denoising.rows(len(batch)) - len(batch))
            done += _run_batch(pipe, batch, conditioning, denoising, part, call or pipe, taps)
    return done


def micro_batches(
    candidates: Sequence[Candidate], denoising: Denoising, conditioning: Conditioning
) -> Iterator[Sequence[Candidate]]:
    """Candidates that run at once, in order.

    Of one prompt only where prompts have keyword arguments of their own; of texts of one length only where the pipeline
    takes no others together.
    """

    def alike(candidate: Candidate) -> tuple[object, ...]:
        return candidate.prompt if conditioning.own else None, conditioning.width(candidate.prompt)

    for _, members in itertools.groupby(candidates, alike):
        group = list(members)
        for first in range(0, len(group), denoising.micro_batch):
            yield group[first : first + denoising.micro_batch]


def alone_only(pipe: Pipeline, extra: Mapping[str, object] | None) -> str | None:
    """Why an image is another one in a batch than alone, a sentence; None where it is not."""
    mixed = any_family_of(pipe).mixed_rows(extra or {})
    if mixed is not None:
        return f"{any_family_of(pipe).pipeline} mixes up {mixed} between the images of a batch; give micro_batch=1."
    return step_cache(pipe)


def _check_alone(pipe: Pipeline, batches: Sequence[Sequence[Candidate]], denoising: Denoising) -> None:
    """Refuse a batch of images that must be alone, unless it is the user's own.

    Raises:
        InputError: see there.
    """
    for batch in batches:
        together = len({id(candidate.generator) for candidate in batch}) == 1
        if denoising.rows(len(batch)) > (len(batch) if together else 1) and (
            reason := alone_only(pipe, denoising.extra)
        ):
            raise InputError(reason)


class _Part(NamedTuple):
    """Steps [start, stop) of a denoising, how its scheduler is suspended before and after them, and how many there are
    before the first, which the pipeline's ``strength`` leaves out."""

    start: int
    stop: int
    solver: Solver
    skipped: int


def _skipped(pipe: Pipeline, denoising: Denoising) -> int:
    if not has_strength(any_family_of(pipe)):
        return 0
    with scheduled(pipe, denoising.num_inference_steps, denoising.size, denoising.extra) as skipped:
        return skipped


def _solver(pipe: Pipeline, denoising: Denoising, steps: tuple[int, int], *, estimates: bool) -> Solver:
    """How the scheduler is suspended; it need not be where the steps are all and nobody asks for estimates.

    Raises:
        InputError: the denoising cannot be suspended.
    """
    (start, stop), reason = steps, whole_only(pipe, denoising.extra)
    if reason is None:
        return solver_of(pipe.scheduler)
    if start == 0 and not estimates:
        own = SOLVERS.get(type(pipe.scheduler).__name__, UNCUT)
        with scheduled(pipe, denoising.num_inference_steps, denoising.size, denoising.extra) as skipped:
            timesteps = pipe.scheduler.timesteps[skipped:]
            calls = any_family_of(pipe).calls(pipe, denoising.extra, timesteps[: len(timesteps) - own.closing])
        if stop == calls:
            return own if own.closing else UNCUT
    raise InputError(reason)


@dataclass(frozen=True)
class _Taps:
    """The callbacks after each step of a micro-batch, and its numbers of rows for candidates and for padding."""

    on_step: Callable[[int, int], None] | None
    on_estimate: Callable[[int, Tensor], None] | None
    real: int
    padding: int

    def report(self, steps: Iterator[int], x0: Tensor) -> None:
        step = next(steps)
        if self.on_estimate is not None:
            self.on_estimate(step, x0[: self.real])
        if self.on_step is not None:
            self.on_step(self.real, self.padding)


def _run_batch(
    pipe: Pipeline,
    batch: Sequence[Candidate],
    conditioning: Conditioning,
    denoising: Denoising,
    part: _Part,
    call: Callable[..., tuple[Tensor, object]],
    taps: _Taps,
) -> list[Candidate]:
    start, stop, solver, skipped = part
    rows = [*batch, *[batch[-1]] * taps.padding]
    state = gather_states([row.state for row in rows], pipe._execution_device) if start else {}
    report = functools.partial(taps.report, itertools.count(start))
    with window(pipe, start, stop, state, report, solver, skipped) as windowed:
        result, generators = run_loop(pipe, rows, conditioning, denoising, call, windowed)
        windowed.check_complete(pipe, stop - start, result)
        states = split_state(windowed.state(), len(batch))
        broken_off = windowed.prepared_again and windowed.breaks_off
    if windowed.x0 is None:
        raise InputError(f"The denoising has only {start} steps; there is no step {start} to run.")
    x0 = windowed.x0.cpu()
    if broken_off and windowed.latents is not None:
        result, x0 = windowed.latents.cpu(), result
    return [
        replace(
            candidate,
            generator=generators[row],
            step=stop,
            latents=result[row : row + 1].clone(),
            x0=x0[row : row + 1].clone(),
            state=states[row],
            first=(candidate.first or candidate.generator) if windowed.prepared_again else None,
        )
        for row, candidate in enumerate(batch)
    ]


def run_loop(
    pipe: Pipeline,
    rows: Sequence[Candidate],
    conditioning: Conditioning,
    denoising: Denoising,
    call: Callable[..., tuple[Tensor, object]],
    view: Window,
) -> tuple[Tensor, list[torch.Generator]]:
    """One call of the stock pipeline over the steps that its scheduler shows.

    Several candidates that share one generator draw from it together, as a batch of the pipeline does.

    Args:
        view: what shows them.

    Returns:
        The latents that its loop ends with, on the host, and copies of the rows' generators, advanced.
    """
    family, size = any_family_of(pipe), denoising.size
    generators = [(row.first or row.generator).clone_state() for row in rows]
    together = len({(row.prompt, row.index) for row in rows}) > 1 and len({id(row.generator) for row in rows}) == 1
    if together:
        generators = generators[:1] * len(rows)
    given = [row.latents for row in rows if row.latents is not None]
    pixels = family.default_size(pipe) if size is None else as_size(size)
    arguments = {**conditioning.rows([row.prompt for row in rows]).kwargs(), **_arguments(pipe, denoising, view)}
    if not together:
        arguments = repeated(family, arguments, len(rows))
    if not family.prepared_again:
        arguments["latents"] = family.resumed(pipe, torch.cat(given), pixels) if given else None
    elif given and not view.start:
        raise InputError(f"The initial noise of a {family.pipeline} comes from its generator; give no latents.")
    with remembering(pipe), resuming(pipe, given, [row.generator for row in rows], generators, view):
        latents = call(
            **arguments,
            generator=generators[0] if together else generators,
            output_type="latent",
            return_dict=False,
        )[0]
    carried = latents if family.shown is None or view.latents is None else view.latents
    return carried.cpu(), generators


def _arguments(pipe: Pipeline, denoising: Denoising, view: Window) -> dict[str, object]:
    """The keyword arguments of a call that its pipeline accepts, without those that are None.

    Raises:
        InputError: it knows no eta.
    """
    family = any_family_of(pipe)
    accepted = keywords_of(stock_class(family))
    arguments: dict[str, object] = {
        name: value
        for name in ("num_inference_steps", "guidance_scale", "height", "width")
        if (value := getattr(denoising, name)) is not None and (name in accepted or name not in SIDES)
    }
    if "eta" in accepted:
        arguments["eta"] = denoising.eta
    elif denoising.eta:
        raise InputError(f"{family.pipeline} takes no eta; leave it out.")
    size = family.default_size(pipe) if denoising.size is None else as_size(denoising.size)
    settings = family.steps(pipe, denoising.num_inference_steps, size)
    angles = {name: settings[name] for name in ANGLES if name in settings}
    extra = family.part(denoising.extra, view.start, view.stop, denoising.num_inference_steps)
    return {**arguments, **angles, **extra, **family.fixed}


@contextmanager
def quiet(pipe: Pipeline) -> Iterator[None]:
    """No progress bar of the pipeline's own: the caller shows one for the whole search."""
    missing = object()
    before = getattr(pipe, "_progress_bar_config", missing)
    pipe._progress_bar_config = {**(before if isinstance(before, dict) else {}), "disable": True}
    try:
        yield
    finally:
        if before is missing:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
