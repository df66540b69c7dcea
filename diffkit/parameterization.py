"""Signal and noise at the timesteps of a model's training, of diffusion and of flow matching alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.solvers import is_flow

if TYPE_CHECKING:
    from diffkit.families import Scheduler

__all__ = ["all_timesteps", "ratio", "x0_weight"]


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
