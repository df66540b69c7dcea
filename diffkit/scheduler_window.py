"""Show a pipeline's loop only the steps [start, stop) of its scheduler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from diffkit.families import Scheduler
from diffkit.solvers import Solver, State, StepCall, solver_of

__all__ = ["Window", "restored", "window"]


class Window:
    """State shared by the windowed scheduler and the segment that runs it."""

    def __init__(self, scheduler: Scheduler, solver: Solver, report: Callable[[Tensor], None]) -> None:
        self.scheduler, self.solver = scheduler, solver
        self.report = report
        self.x0: Tensor | None = None
        self.inside = 0  # depth of calls in which the scheduler itself must see all its timesteps

    def state(self) -> State:
        """What the solver carries now."""
        return {name: getattr(self.scheduler, name, None) for name in self.solver.carries}

    @contextmanager
    def full_view(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


@contextmanager
def window(
    scheduler: Scheduler, start: int, stop: int | None, state: State, report: Callable[[Tensor], None]
) -> Iterator[Window]:
    """The scheduler shows steps [start, stop) only; class and attributes are as before afterwards, come what may.

    Args:
        stop: None shows all that are left.
        report: called with x0, shaped as the latents, after each step.
    """
    base: Any = type(scheduler)
    view = Window(scheduler, solver_of(scheduler), report)
    with restored(scheduler):
        scheduler.__class__ = _windowed(base, view, start, stop, state)
        try:
            yield view
        finally:
            scheduler.__class__ = base


def _windowed(base: Any, view: Window, start: int, stop: int | None, state: State) -> type:
    """The subclass of the scheduler's class for one segment."""

    def timesteps(self: Any) -> Any:
        full = self.__dict__["timesteps"]
        return full if view.inside else full[start:stop]

    def set_timesteps_attribute(self: Any, value: Any) -> None:
        self.__dict__["timesteps"] = value

    def init_noise_sigma(self: Any) -> Any:
        if start:
            return 1.0
        if "init_noise_sigma" in self.__dict__:
            return self.__dict__["init_noise_sigma"]
        return base.init_noise_sigma.fget(self)

    # The pipeline inspects the signatures of these methods, so the wrappers must show the originals'.
    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        with view.full_view():
            base.set_timesteps(self, *args, **kwargs)
        if start:
            self.__dict__.update(state)

    def scale_model_input(self: Any, *args: Any, **kwargs: Any) -> Any:
        with view.full_view():
            return base.scale_model_input(self, *args, **kwargs)

    @functools.wraps(base.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        with view.full_view():
            result = base.step(self, model_output, timestep, sample, *args, **kwargs)
            values = result if isinstance(result, tuple) else tuple(result.values())
            view.x0 = view.solver.x0(self, StepCall(model_output, timestep, sample, values))
        view.report(view.x0)
        return result

    def set_begin_index(self: Any, begin_index: int = 0) -> None:
        base.set_begin_index(self, begin_index + start)

    members: dict[str, Any] = {
        "timesteps": property(timesteps, set_timesteps_attribute),
        "set_timesteps": set_timesteps,
        "step": step,
        "__module__": base.__module__,
    }
    if hasattr(view.scheduler, "init_noise_sigma"):
        members["init_noise_sigma"] = property(init_noise_sigma)
    if hasattr(base, "scale_model_input"):
        members["scale_model_input"] = functools.wraps(base.scale_model_input)(scale_model_input)
    if hasattr(base, "set_begin_index"):
        members["set_begin_index"] = set_begin_index
    return type(base.__name__, (base,), members)


@contextmanager
def restored(scheduler: Scheduler) -> Iterator[None]:
    """Put the scheduler's attributes back: some solvers change their lists in place, hence the copies."""
    before = {name: list(value) if isinstance(value, list) else value for name, value in scheduler.__dict__.items()}
    try:
        yield
    finally:
        scheduler.__dict__.clear()
        scheduler.__dict__.update(before)
