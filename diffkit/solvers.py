"""State that each scheduler carries from step to step, and where it keeps its estimate of the clean latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Scheduler
from diffkit.noise_levels import latent_coefficients
from diffkit.parameterization import is_flow, predicted_x0, x0_of_output, x0_of_velocity

__all__ = [
    "SOLVERS",
    "UNCUT",
    "Solver",
    "State",
    "StepCall",
    "cut_refusal",
    "draws_noise",
    "gather_states",
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
        x0: (scheduler after the call, the call) -> estimate of the clean latents, shaped as they are.
        refusal: (scheduler) -> why this configuration cannot be suspended, or None.
        noise: when it adds noise while it denoises; ``eta``: with an eta above 0, ``sde``: by such an algorithm_type.
        method: what it is, in words, for the table of schedulers only.
        calls_per_step: how often it calls the denoiser in a step; the last step of those that do so twice takes one.
        refused: the settings that ``refusal`` refuses, for the table of schedulers only.
        closing: timesteps behind that of the last call, which the pipeline's loop leaves out by itself.
    """

    carries: tuple[str, ...]
    x0: Callable[[Scheduler, StepCall], Tensor]
    refusal: Callable[[Scheduler], str | None] = lambda scheduler: None
    noise: Literal["never", "always", "eta", "sde"] = "never"
    method: str = ""
    calls_per_step: int = 1
    refused: str = ""
    closing: int = 0


def _x0_returned(scheduler: Scheduler, call: StepCall) -> Tensor:
    """The second value that ``step`` returns."""
    return call.result[1]


def _x0_at_timestep(scheduler: Scheduler, call: StepCall) -> Tensor:
    """Tweedie's estimate from the model's output, float32, where levels are those of the timesteps."""
    return predicted_x0(scheduler, call.model_output, call.sample, call.timestep)


def _x0_at_sigma(scheduler: Scheduler, call: StepCall) -> Tensor:
    """Tweedie's estimate at the sigma from before the step, float32, with the scheduler's thresholding."""
    at = latent_coefficients(scheduler, scheduler.step_index - 1)
    x0 = x0_of_output(scheduler, call.model_output, call.sample, at)
    thresholded: Tensor = scheduler._threshold_sample(x0) if scheduler.config.get("thresholding") else x0
    return thresholded


def _x0_of_dpm(scheduler: Scheduler, call: StepCall) -> Tensor:
    """DPM++ keeps x0 itself in ``model_outputs``; plain DPM keeps the noise."""
    if scheduler.config.algorithm_type.endswith("++"):
        last: Tensor = scheduler.model_outputs[-1]
        return last
    return _x0_at_sigma(scheduler, call)


def _x0_of_unipc(scheduler: Scheduler, call: StepCall) -> Tensor:
    if scheduler.predict_x0:
        last: Tensor = scheduler.model_outputs[-1]
        return last
    return _x0_at_sigma(scheduler, call)


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
    if scheduler.config.get("scale_factors"):
        return "scale_factors change the size of the latents from step to step; set it to None"
    return None


_INDEX = ("_step_index",)
_TWICE = ("_step_index", "sample")
_PNDM = ("ets", "counter", "cur_model_output", "cur_sample")
_HEUN = ("_step_index", "prev_derivative", "dt", "sample")
_MULTISTEP = ("_step_index", "model_outputs", "lower_order_nums")
_SINGLESTEP = ("_step_index", "model_outputs", "sample")
_UNIPC = ("_step_index", "model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order")
SOLVERS: dict[str, Solver] = {
    "DDIMScheduler": Solver((), _x0_returned, noise="eta", method="DDIM"),
    "DDPMScheduler": Solver((), _x0_returned, noise="always", method="ancestral sampling of DDPM"),
    "EulerDiscreteScheduler": Solver(_INDEX, _x0_returned, method="Euler"),
    "EulerAncestralDiscreteScheduler": Solver(_INDEX, _x0_returned, noise="always", method="Euler, ancestral"),
    "LMSDiscreteScheduler": Solver(("_step_index", "derivatives"), _x0_returned, method="linear multistep"),
    "HeunDiscreteScheduler": Solver(_HEUN, _x0_returned, method="Heun", calls_per_step=2),
    "KDPM2DiscreteScheduler": Solver(_TWICE, _x0_returned, method="DPM2, midpoint", calls_per_step=2),
    "KDPM2AncestralDiscreteScheduler": Solver(
        _TWICE, _x0_returned, noise="always", method="DPM2, midpoint, ancestral", calls_per_step=2
    ),
    "DPMSolverMultistepScheduler": Solver(_MULTISTEP, _x0_of_dpm, noise="sde", method="DPM-Solver(++), multistep"),
    "DPMSolverSinglestepScheduler": Solver(_SINGLESTEP, _x0_of_dpm, noise="sde", method="DPM-Solver(++), singlestep"),
    "DEISMultistepScheduler": Solver(_MULTISTEP, _x0_at_sigma, method="DEIS, multistep"),
    "UniPCMultistepScheduler": Solver(
        _UNIPC, _x0_of_unipc, _refuse_inner_solver, method="UniPC, multistep", refused="solver_p"
    ),
    "PNDMScheduler": Solver(_PNDM, _x0_at_timestep, method="PNDM"),
    "LCMScheduler": Solver(_INDEX, _x0_returned, noise="always", method="consistency sampling of LCM"),
    "TCDScheduler": Solver(_INDEX, _x0_at_timestep, noise="eta", method="strategic sampling of TCD"),
    "FlowMatchEulerDiscreteScheduler": Solver(
        _INDEX, _x0_of_flow, _refuse_odd_flow, method="Euler", refused="invert_sigmas, stochastic_sampling"
    ),
    "FlowMatchHeunDiscreteScheduler": Solver(_HEUN, _x0_of_flow, method="Heun", calls_per_step=2),
    "FlowMatchLCMScheduler": Solver(
        _INDEX,
        _x0_of_flow,
        _refuse_odd_flow,
        noise="always",
        method="consistency sampling of LCM",
        refused="invert_sigmas, scale_factors",
    ),
    "SCMScheduler": Solver(
        _INDEX, _x0_returned, noise="always", method="consistency sampling of TrigFlow (sCM)", closing=1
    ),
}


def _ends_with(scheduler: Scheduler, call: StepCall) -> Tensor:
    """What the last step ends with are the clean latents."""
    return call.result[0]


#: Any scheduler, of a denoising that is not cut: its steps are counted, and its estimate is that of the last one only.
UNCUT = Solver((), _ends_with)


def cut_refusal(scheduler: Scheduler) -> str | None:
    """Why a denoising by this scheduler cannot be suspended, a sentence; None where it can."""
    name = type(scheduler).__name__
    if name not in SOLVERS:
        flow = is_flow(scheduler)
        fitting = [other for other, how in SOLVERS.items() if other.startswith("FlowMatch") == flow and not how.closing]
        example, short = ("FlowMatchEulerDiscrete", "flow-euler") if is_flow(scheduler) else ("DDIM", "ddim")
        return (
            f"The scheduler {name} cannot be suspended in mid-denoising; give schedule='' to try whole images only, or "
            f"set pipe.scheduler to one of: {', '.join(fitting)}, for example "
            f"{example}Scheduler.from_config(pipe.scheduler.config), on the command line --scheduler {short}."
        )
    reason = SOLVERS[name].refusal(scheduler)
    return (
        None if reason is None else f"This {name} cannot be suspended in mid-denoising: {reason} (or by --scheduler)."
    )


def solver_of(scheduler: Scheduler) -> Solver:
    """How to suspend this scheduler.

    Raises:
        InputError: the scheduler, or its configuration, cannot be suspended; the message says which one can.
    """
    if (reason := cut_refusal(scheduler)) is not None:
        raise InputError(reason)
    return SOLVERS[type(scheduler).__name__]


def draws_noise(scheduler: Scheduler, eta: float = 0.0) -> bool:
    """Whether a scheduler that can be suspended adds noise while it denoises.

    Args:
        eta: DDIM's and TCD's share of noise.

    Raises:
        InputError: see :func:`solver_of`.
    """
    noise = solver_of(scheduler).noise
    if noise == "sde":
        return str(scheduler.config.get("algorithm_type")).startswith("sde")
    return eta > 0 if noise == "eta" else noise == "always"


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
