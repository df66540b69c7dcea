"""Signal and noise at the timesteps of a model's training, of diffusion and of flow matching alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import ScoringError
from diffkit.families import Scheduler

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

__all__ = ["StepCall", "all_timesteps", "is_flow", "log_snr", "ratio", "tweedie", "x0_weight"]


def all_timesteps(scheduler: Scheduler) -> Tensor:
    """Every whole training timestep at which there is some noise: (n,) integers, or floats of a flow model."""
    total = int(scheduler.config.num_train_timesteps)
    return torch.arange(1.0, total) if is_flow(scheduler) else torch.arange(total)


def ratio(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    """(n,) signal over noise: ``sqrt(abar / (1 - abar))``, or ``(1 - sigma) / sigma`` of a flow model; >= 0."""
    if is_flow(scheduler):
        sigma = _sigma(scheduler, timesteps)
        return (1 - sigma) / sigma
    abar = _abar(scheduler, timesteps)
    return (abar / (1 - abar)).sqrt()


def x0_weight(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    """(n,) what turns a squared error of the velocity into one of x0: ``1 - abar``, or ``sigma^2`` of a flow model."""
    return _sigma(scheduler, timesteps).square() if is_flow(scheduler) else 1 - _abar(scheduler, timesteps)


def _abar(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    table: Tensor = scheduler.alphas_cumprod.float().to(timesteps.device)
    return table[timesteps]


def _sigma(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    return timesteps.float() / float(scheduler.config.num_train_timesteps)


@dataclass(frozen=True)
class StepCall:
    """One call of ``scheduler.step``: what went in, and what came out."""

    model_output: Tensor
    timestep: Tensor
    sample: Tensor
    result: Sequence[Tensor]


def is_flow(scheduler: Scheduler) -> bool:
    """Whether the model under this scheduler predicts a velocity on straight lines from data to noise."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def tweedie(scheduler: Scheduler, call: StepCall) -> Tensor:
    """Tweedie's estimate from the model's output and alpha-bar at the timestep, float32.

    Of a flow model ``sample - sigma v``, with sigma the timestep over the number of training timesteps.
    """
    if is_flow(scheduler):
        sigma = call.timestep.to(call.sample.device, torch.float32) / scheduler.config.num_train_timesteps
        estimate: Tensor = call.sample.float() - sigma * call.model_output.float()
        return estimate
    alpha: Tensor = scheduler.alphas_cumprod[int(call.timestep)].to(call.sample.device)
    sample, output = call.sample.float(), call.model_output.float()
    kind = scheduler.config.prediction_type
    if kind == "sample":
        return output
    if kind == "v_prediction":
        return alpha.sqrt() * sample - (1 - alpha).sqrt() * output
    return (sample - (1 - alpha).sqrt() * output) / alpha.sqrt()


def log_snr(sigma: float) -> float:
    """-2 ln(sigma): log of the signal-to-noise ratio of power; higher is cleaner, infinite without noise."""
    return -2.0 * math.log(sigma) if sigma > 0 else math.inf


def noise_per_prediction(scheduler: SchedulerMixin, timestep: Tensor) -> float:
    """What a difference of predictions must be multiplied by to be a difference of noise.

    1 for noise prediction; for velocity v = sqrt(abar) eps - sqrt(1 - abar) x0 at a fixed x_t it is sqrt(abar); for
    the prediction of x0 it is sqrt(abar / (1 - abar)). Of a flow model 1: its velocity is compared as it is.
    """
    if is_flow(scheduler):
        return 1.0
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return 1.0
    abar = float(scheduler.alphas_cumprod[int(torch.as_tensor(timestep).flatten()[0].round())])
    signal: float = abar**0.5
    return signal if kind == "v_prediction" else signal / (1 - abar) ** 0.5


def alpha_bar(scheduler: Scheduler, timestep: float | Tensor) -> float:
    """Cumulative signal share in (0, 1) at a training timestep.

    Raises:
        ScoringError: the scheduler keeps none (flow matching).
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise ScoringError(f"{type(scheduler).__name__} keeps no alphas_cumprod; use a DDIM-like scheduler")
    return float(table[int(torch.as_tensor(timestep).flatten()[0].round())])


def sigma(scheduler: Scheduler, timestep: float | Tensor) -> float:
    """Noise level in [0, 1] of a flow model at a timestep."""
    return float(torch.as_tensor(timestep).flatten()[0]) / float(scheduler.config.num_train_timesteps)


def noise_level(scheduler: Scheduler, timestep: float | Tensor) -> float:
    """Share of noise in the latents at a timestep, in (0, 1]: ``sqrt(1 - abar)``, or a flow model's sigma."""
    return sigma(scheduler, timestep) if is_flow(scheduler) else (1 - alpha_bar(scheduler, timestep)) ** 0.5


def as_noise(scheduler: Scheduler, output: Tensor, latents: Tensor, timestep: float | Tensor) -> Tensor:
    """The network's output as predicted noise, float32, whatever it predicts.

    Of a flow model, whose latents are ``x_t = (1 - sigma) x + sigma eps`` and whose output is ``v = eps - x``:
    ``eps = x_t + (1 - sigma) v``.
    """
    output, latents = output.float(), latents.float()
    if is_flow(scheduler):
        return latents + (1 - sigma(scheduler, timestep)) * output
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return output
    signal = alpha_bar(scheduler, timestep)
    if kind == "v_prediction":
        return float(signal**0.5) * output + float((1 - signal) ** 0.5) * latents
    if kind == "sample":
        return (latents - float(signal**0.5) * output) / float((1 - signal) ** 0.5)
    raise ScoringError(f"prediction type {kind!r} is unknown; expected epsilon, v_prediction or sample")
