"""State that each scheduler carries from step to step, and where it keeps its estimate of the clean latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Scheduler
from diffkit.parameterization import (
    PURE_NOISE,
    Coefficients,
    coefficients,
    is_flow,
    noise_over_signal,
    predicted_x0,
    x0_of_velocity,
)

__all__ = [
    "SOLVERS",
    "Solver",
    "State",
    "StepCall",
    "blind_steps",
    "gather_states",
    "latent_coefficients",
    "noise_levels",
    "refuse_division_by_zero",
    "solver_of",
    "split_state",
]

State = dict[str, object]  # attribute of the scheduler -> its value, tensors of shape (B, ...) inside


@dataclass(frozen=True)
class StepCall:
    """One call of ``scheduler.step``: what went in, and what came out."""

    model_output: Tensor
    timestep: Tensor
    sample: Tensor
    result: Sequence[Tensor]


@dataclass(frozen=True)
class Solver:
    """A scheduler class that can be suspended.

    Attributes:
        carries: attributes that a suspended denoising takes along and puts back.
        x0: (scheduler after the step, the step's call) -> estimate of the clean latents, shaped as they are.
        refusal: (scheduler) -> why this configuration cannot be suspended, or None.
        unit_signal: whether it carries latents as ``x0 + sigma epsilon`` and scales them for the denoiser.
    """

    carries: tuple[str, ...]
    x0: Callable[[Scheduler, StepCall], Tensor]
    refusal: Callable[[Scheduler], str | None] = lambda scheduler: None
    unit_signal: bool = False


def _x0_returned(scheduler: Scheduler, call: StepCall) -> Tensor:
    """The second value that ``step`` returns."""
    return call.result[1]


def _x0_of_output(scheduler: Scheduler, call: StepCall) -> Tensor:
    """Tweedie's estimate from the model's output, float32."""
    return predicted_x0(scheduler, call.model_output, call.sample, call.timestep)


def _x0_of_dpm(scheduler: Scheduler, call: StepCall) -> Tensor:
    """DPM++ keeps x0 itself in ``model_outputs``; plain DPM keeps the noise."""
    if scheduler.config.algorithm_type.endswith("++"):
        last: Tensor = scheduler.model_outputs[-1]
        return last
    return _x0_of_output(scheduler, call)


def _x0_of_unipc(scheduler: Scheduler, call: StepCall) -> Tensor:
    if scheduler.predict_x0:
        last: Tensor = scheduler.model_outputs[-1]
        return last
    return _x0_of_output(scheduler, call)


def _refuse_inner_solver(scheduler: Scheduler) -> str | None:
    if scheduler.solver_p is None:
        return None
    return "its solver_p is a second scheduler with a state of its own; set solver_p=None"


def _x0_of_flow(scheduler: Scheduler, call: StepCall) -> Tensor:
    """With the sigma of before the step: ``step`` has moved the index on by one."""
    sigma = scheduler.sigmas[scheduler.step_index - 1].to(call.sample.device)
    return x0_of_velocity(call.model_output, call.sample, sigma)


def _refuse_odd_flow(scheduler: Scheduler) -> str | None:
    if scheduler.config.get("stochastic_sampling"):
        return "stochastic_sampling draws noise from no generator of a candidate's own; set it to False"
    if scheduler.config.get("invert_sigmas"):
        return "invert_sigmas counts noise backwards; set it to False"
    return None


_PNDM = ("ets", "counter", "cur_model_output", "cur_sample")
_UNIPC = ("_step_index", "model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order")
SOLVERS: dict[str, Solver] = {
    "DDIMScheduler": Solver((), _x0_returned),
    "EulerDiscreteScheduler": Solver(("_step_index",), _x0_returned, unit_signal=True),
    "EulerAncestralDiscreteScheduler": Solver(("_step_index",), _x0_returned, unit_signal=True),
    "DPMSolverMultistepScheduler": Solver(("_step_index", "model_outputs", "lower_order_nums"), _x0_of_dpm),
    "UniPCMultistepScheduler": Solver(_UNIPC, _x0_of_unipc, _refuse_inner_solver),
    "PNDMScheduler": Solver(_PNDM, _x0_of_output),
    "FlowMatchEulerDiscreteScheduler": Solver(("_step_index",), _x0_of_flow, _refuse_odd_flow),
}


DIVIDING = ("DDIMScheduler", "PNDMScheduler")  # by a signal that may be 0; others keep it above


def solver_of(scheduler: Scheduler) -> Solver:
    """How to suspend this scheduler.

    Raises:
        InputError: the scheduler, or its configuration, cannot be suspended; the message says which one can.
    """
    name = type(scheduler).__name__
    if name not in SOLVERS:
        raise InputError(
            f"The scheduler {name} cannot be suspended in mid-denoising; set pipe.scheduler to one of: "
            f"{', '.join(SOLVERS)}, for example DDIMScheduler.from_config(pipe.scheduler.config), on the command line "
            f"--scheduler ddim."
        )
    reason = SOLVERS[name].refusal(scheduler)
    if reason is not None:
        raise InputError(f"This {name} cannot be suspended in mid-denoising: {reason} (or by --scheduler).")
    return SOLVERS[name]


def noise_levels(scheduler: Scheduler) -> list[float]:
    """Noise over signal of the latents that go into each step of the present timesteps, falling from step to step.

    As :func:`diffkit.parameterization.noise_over_signal`, by the scheduler's own ``sigmas`` where it keeps them. Pure
    noise counts as :data:`diffkit.parameterization.PURE_NOISE`: it has no finite ratio.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        levels = noise_over_signal(scheduler, scheduler.timesteps.long().cpu()).tolist()
    elif is_flow(scheduler):
        levels = [level / (1 - level) if level < 1 else PURE_NOISE for level in map(float, sigmas[:-1])]
    else:
        levels = [float(sigma) for sigma in sigmas[:-1]]
    return [min(level, PURE_NOISE) for level in levels]


def latent_coefficients(scheduler: Scheduler, step: int) -> Coefficients:
    """Signal and noise, scalars, of the latents that go into a step of the present timesteps, as the loop carries them.

    ``x = signal x0 + noise epsilon``, by the scheduler's own ``sigmas`` where it keeps them; the signal is 1 where it
    scales latents for the denoiser.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) != len(scheduler.timesteps) + 1:
        return coefficients(scheduler, scheduler.timesteps[step].cpu())
    sigma = torch.as_tensor(sigmas[step]).float().cpu()
    if is_flow(scheduler):
        return Coefficients(1 - sigma, sigma)
    if solver_of(scheduler).unit_signal:
        return Coefficients(torch.ones_like(sigma), sigma)
    norm = (1 + sigma.square()).sqrt()
    return Coefficients(1 / norm, sigma / norm)


def blind_steps(scheduler: Scheduler, levels: Sequence[float]) -> tuple[int, ...]:
    """Steps whose estimate of the clean latents is undefined: of predicted epsilon at pure noise.

    Args:
        levels: as :func:`noise_levels` returns them.
    """
    if is_flow(scheduler) or scheduler.config.get("prediction_type") != "epsilon":
        return ()
    return tuple(step for step, level in enumerate(levels) if level >= PURE_NOISE)


def refuse_division_by_zero(scheduler: Scheduler, blind: Sequence[int]) -> None:
    """Refuse a generation in which the scheduler divides by a signal of 0: all its images are NaN.

    Raises:
        InputError: epsilon is predicted, and the first step begins from pure noise.
    """
    config = scheduler.config
    clipped = config.get("clip_sample") or config.get("thresholding")
    if blind and type(scheduler).__name__ in DIVIDING and not clipped:
        raise InputError(
            f"This {type(scheduler).__name__} begins from pure noise (zero terminal SNR), and the model predicts "
            f"epsilon: its first step divides by zero and every image is NaN; set rescale_betas_zero_snr to False, "
            f"timestep_spacing to leading, or prediction_type to v_prediction if the model was trained so."
        )


def split_state(state: State, rows: int) -> list[State]:
    """One state for each of the first ``rows`` rows of the batch, on the host; values without a batch are shared."""
    return [{name: _pick(value, row) for name, value in state.items()} for row in range(rows)]


def gather_states(states: Sequence[State], device: torch.device) -> State:
    """The batch's state from its rows' states, on ``device``; the inverse of :func:`split_state`."""
    return {name: _stack([state[name] for state in states], device) for name in states[0]}


def _pick(value: object, row: int) -> object:
    if isinstance(value, Tensor) and value.ndim:
        return value[row : row + 1].cpu().clone()
    if isinstance(value, list):
        return [_pick(item, row) for item in value]
    return value


def _stack(values: Sequence[object], device: torch.device) -> object:
    first = values[0]
    if isinstance(first, Tensor) and first.ndim:
        return torch.cat([value for value in values if isinstance(value, Tensor)]).to(device)
    if isinstance(first, list):
        columns = zip(*(value for value in values if isinstance(value, list)), strict=True)
        return [_stack(column, device) for column in columns]
    return first
