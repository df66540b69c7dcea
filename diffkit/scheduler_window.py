"""Show a pipeline's loop only the steps [start, stop) of its scheduler.

The pipeline works with a copy of its scheduler meanwhile, so that other pipelines which share the scheduler, in other
threads too, never see a part of it. One pipeline is for one thread at a time; a second one waits.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Pipeline, Scheduler, any_family_of
from diffkit.families.base import has_strength
from diffkit.interruption import DenoisingInterrupted
from diffkit.solvers import UNCUT, Solver, State, StepCall, solver_of

__all__ = ["Window", "exclusive", "scheduler_copy", "window"]

_LOCKS: WeakKeyDictionary[Pipeline, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def exclusive(pipe: Pipeline) -> Iterator[None]:
    """The pipeline for this thread alone: another one waits here until the block has ended.

    Example:
        >>> from diffkit import load_pipeline
        >>> pipe = load_pipeline("lab")
        >>> with exclusive(pipe), exclusive(pipe):
        ...     print("the same thread may enter again")
        the same thread may enter again
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(pipe, threading.RLock())
    with lock:
        yield


class Window:
    """State shared by the windowed scheduler and the segment that runs it.

    Attributes:
        scheduler: the pipeline's copy of its scheduler.
        steps: how many steps it has made.
        x0: the estimate that the last of them has left.
        latents: what the last of them has left, as the loop carries them.
        skipped: how many of the scheduler's steps the pipeline leaves out before its first, by its ``strength``.
        prepared_again: see :class:`diffkit.families.Family`.
        jumps: the steps that are shown, where these are not all from ``start`` to ``stop``.
        resume: what the idle step before them gives out as latents, where the pipeline has prepared again.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        solver: Solver,
        steps: tuple[int, int | None],
        state: State,
        report: Callable[[Tensor], None],
        skipped: int = 0,
    ) -> None:
        self.scheduler, self.base, self.solver = scheduler, type(scheduler), solver
        (self.start, self.stop), self.carried = steps, state
        self.report = report
        self.steps = 0
        self.x0: Tensor | None = None
        self.latents: Tensor | None = None
        self.skipped, self.prepared_again = skipped, False
        self.jumps: list[int] | None = None
        self.resume: Callable[[], Tensor] | None = None
        self.inside = 0  # depth of calls in which the scheduler itself must see all its timesteps
        self.open, self.thread = True, threading.get_ident()

    def state(self) -> State:
        """What the solver carries now."""
        return {name: getattr(self.scheduler, name, None) for name in self.solver.carries}

    @property
    def _every(self) -> Tensor:
        """The timesteps of all calls."""
        timesteps: Tensor = self.scheduler.timesteps if self.solver is UNCUT else self.scheduler.__dict__["timesteps"]
        return timesteps[: len(timesteps) - self.solver.closing]

    def own_steps(self) -> Tensor:
        """The timesteps of this part."""
        own = self._every[self.skipped :]
        return own[self.start : self.stop] if self.jumps is None else own[self.jumps]

    def shown(self) -> Tensor:
        """The timesteps that the loop sees: those of this part, after an idle one where it has prepared again.

        Those that the loop leaves out stand behind them.
        """
        if self.solver.closing:
            return torch.cat([self.own_steps(), self.scheduler.__dict__["timesteps"][-self.solver.closing :]])
        if self.resume is None:
            return self.own_steps()
        return torch.cat([self._every[self.skipped : self.skipped + 1], self.own_steps()])

    @property
    def breaks_off(self) -> bool:
        """Whether the step just made is the last of a part that others follow."""
        if self.stop is None or self.skipped + self.stop >= len(self._every):
            return False
        return self.steps == len(self.own_steps())

    def close(self) -> None:
        """Show all steps again; so does whatever was made of the copy meanwhile."""
        self.open, self.start, self.stop, self.carried = False, 0, None, {}
        self.skipped, self.jumps, self.resume = 0, None, None
        self.scheduler.__class__ = self.base

    def check_complete(self, pipe: Pipeline, steps: int | None = None, latents: Tensor | None = None) -> None:
        """Refuse what a loop has left that made fewer steps than it was shown.

        Args:
            steps: how many it makes, where it was shown more.
            latents: what it has left.

        Raises:
            DenoisingInterrupted: see there.
        """
        shown = len(self.own_steps())
        if self.steps < (shown if steps is None else min(shown, steps)):
            left = self.x0.cpu() if self.solver.closing and self.x0 is not None else latents  # what that loop returns
            raise DenoisingInterrupted(pipe, latents=left)

    def check_thread(self) -> None:
        """Refuse another thread than the one that runs the segment.

        Raises:
            InputError: see there.
        """
        if self.open and threading.get_ident() != self.thread:
            raise InputError(
                f"This {self.base.__name__} is in the middle of a search in another thread; give this pipeline a "
                f"scheduler of its own: pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)."
            )

    @contextmanager
    def full_view(self) -> Iterator[None]:
        self.check_thread()
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


@contextmanager
def window(
    pipe: Pipeline,
    start: int,
    stop: int | None,
    state: State,
    report: Callable[[Tensor], None],
    solver: Solver | None = None,
    skipped: int = 0,
) -> Iterator[Window]:
    """The pipeline's scheduler shows steps [start, stop) only; afterwards the pipeline has its own again, untouched.

    Args:
        stop: None shows all that are left.
        state: what the solver carries at ``start``.
        report: called with x0, shaped as the latents, after each step.
        skipped: how many steps the pipeline's ``strength`` leaves out; ``start`` and ``stop`` count from there.
        solver: how the scheduler is suspended, by default as :func:`diffkit.solvers.solver_of` says; with
            :data:`diffkit.solvers.UNCUT` it shows all steps, which are reported only.

    Raises:
        InputError: the pipeline is inside of a window already, or the scheduler cannot be suspended.
    """
    with scheduler_copy(pipe) as scheduler:
        view = Window(scheduler, solver or solver_of(scheduler), (start, stop), state, report, skipped)
        family = any_family_of(pipe)
        view.prepared_again = family.prepared_again
        scheduler.__class__ = _windowed(view, whole=has_strength(family))
        try:
            with _by_strength(pipe, view) if has_strength(family) and view.solver is not UNCUT else nullcontext():
                yield view
        finally:
            view.close()


@contextmanager
def scheduler_copy(pipe: Pipeline) -> Iterator[Scheduler]:
    """The pipeline with a copy of its scheduler, to change at will; it has its own again afterwards, come what may.

    Lists are copied too, because some solvers change theirs in place.

    Raises:
        InputError: the scheduler is inside of a window.
    """
    with exclusive(pipe):
        own: Any = pipe.scheduler
        _mend(own)
        _refuse_replaced(own)
        kind: Any = type(own)
        copied = kind.__new__(kind)
        copied.__dict__.update(
            (name, list(value) if isinstance(value, list) else value) for name, value in own.__dict__.items()
        )
        attributes = pipe.__dict__  # by assignment diffusers would note another scheduler in the configuration
        attributes["scheduler"] = copied
        try:
            yield copied
        finally:
            if attributes["scheduler"] is copied:
                attributes["scheduler"] = own


def _refuse_replaced(scheduler: Any) -> None:
    """Refuse a scheduler of which a method was replaced on the object: a copy's would call the original's.

    Raises:
        InputError: see there.
    """
    replaced = [name for name in ("step", "set_timesteps", "scale_model_input") if name in vars(scheduler)]
    if replaced:
        raise InputError(
            f"The method {replaced[0]} of this {type(scheduler).__name__} was replaced on the object, and a copy would "
            f"call the original's: delete it (del pipe.scheduler.{replaced[0]}), or write a subclass."
        )


def _mend(scheduler: Any) -> None:
    """Give a copy that was taken inside of a window its own class again.

    Raises:
        InputError: the window is open still.
    """
    view: Window | None = getattr(type(scheduler), "_window", None)
    if view is None:
        return
    view.check_thread()
    if view.open:
        raise InputError(
            f"This {view.base.__name__} is in the middle of a denoising, which called the pipeline again; use another "
            f"pipeline inside of it, with a scheduler of its own."
        )
    scheduler.__class__ = view.base


@contextmanager
def _by_strength(pipe: Pipeline, view: Window) -> Iterator[None]:
    """The pipeline takes the steps of its window where it would take those that its ``strength`` leaves."""
    attributes, own = pipe.__dict__, pipe.get_timesteps
    before = attributes.get("get_timesteps")

    def get_timesteps(*args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        with view.full_view():
            _, steps = own(*args, **kwargs)
        return view.shown(), steps

    attributes["get_timesteps"] = get_timesteps
    try:
        yield
    finally:
        if before is None:
            del attributes["get_timesteps"]
        else:
            attributes["get_timesteps"] = before


def _windowed(view: Window, *, whole: bool) -> type:
    """The subclass of the scheduler's class for one segment; once the window is closed it is as its base.

    Args:
        whole: whether the pipeline sees all timesteps, of which it takes those of the window elsewhere.
    """
    base: Any = view.base

    def timesteps(self: Any) -> Any:
        view.check_thread()
        full = self.__dict__["timesteps"]
        return full if view.inside or whole or not view.open else view.shown()

    def set_timesteps_attribute(self: Any, value: Any) -> None:
        self.__dict__["timesteps"] = value

    def init_noise_sigma(self: Any) -> Any:
        if view.start and not view.prepared_again:
            return 1.0
        if "init_noise_sigma" in self.__dict__:
            return self.__dict__["init_noise_sigma"]
        return base.init_noise_sigma.fget(self)

    # The pipeline inspects the signatures of these methods, so the wrappers must show the originals'.
    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        with view.full_view():
            base.set_timesteps(self, *args, **kwargs)
        if view.start and not view.prepared_again:
            self.__dict__.update(view.carried)

    def scale_model_input(self: Any, *args: Any, **kwargs: Any) -> Any:
        with view.full_view():
            return base.scale_model_input(self, *args, **kwargs)

    @functools.wraps(base.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        with view.full_view():
            if view.resume is not None:
                resume, view.resume = view.resume, None
                self.__dict__.update(view.carried)
                return (resume(),)
            result = base.step(self, model_output, timestep, sample, *args, **kwargs)
            if not view.open:
                return result
            values = result if isinstance(result, tuple) else tuple(result.values())
            view.latents = values[0]
            view.x0 = view.solver.x0(self, StepCall(model_output, timestep, sample, values))
        view.steps += 1
        view.report(view.x0)
        if view.prepared_again and view.breaks_off:  # the loop then makes of the estimate what it makes of an image
            return (view.x0, *values[1:])
        return result

    def set_begin_index(self: Any, begin_index: int = 0) -> None:
        base.set_begin_index(self, begin_index + (0 if view.prepared_again else view.start))

    if view.solver is UNCUT:
        return type(base.__name__, (base,), {"step": step, "_window": view, "__module__": base.__module__})
    members: dict[str, Any] = {
        "timesteps": property(timesteps, set_timesteps_attribute),
        "set_timesteps": set_timesteps,
        "step": step,
        "_window": view,
        "__module__": base.__module__,
    }
    if hasattr(view.scheduler, "init_noise_sigma"):
        members["init_noise_sigma"] = property(init_noise_sigma)
    if hasattr(base, "scale_model_input"):
        members["scale_model_input"] = functools.wraps(base.scale_model_input)(scale_model_input)
    if hasattr(base, "set_begin_index"):
        members["set_begin_index"] = set_begin_index
    return type(base.__name__, (base,), members)
