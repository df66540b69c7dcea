"""Training objective of a denoiser: noisy latents and the target that it should predict, by its own scheduler."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Scheduler
from diffkit.parameterization import PREDICTION_TYPES, coefficients, is_flow

__all__ = ["Noised", "all_timesteps", "draw_timesteps", "noised", "timestep_bins", "timesteps_at"]

Noised = tuple[Tensor, Tensor]  # noisy latents and the target, both shaped as the clean latents


def noised(scheduler: Scheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
    """Noisy latents ``signal x + spread noise`` and the training target at them.

    Signal and spread are those of :func:`diffkit.parameterization.coefficients`. The target is what the table there
    calls the output. Differentiable in ``clean`` and ``noise``.

    Args:
        scheduler: with ``alphas_cumprod`` (T,) and a ``prediction_type``, or one of flow matching.
        clean: (B, ...) latents as the denoiser sees them.
        noise: (B, ...) standard normal.
        timesteps: (B,) integers in [0, T); numbers in [0, T] for flow matching.

    Raises:
        InputError: the scheduler predicts something else.
    """
    flow, kind = is_flow(scheduler), scheduler.config.get("prediction_type")
    if not flow and not (hasattr(scheduler, "alphas_cumprod") and kind in PREDICTION_TYPES):
        raise InputError(
            f"Expected a scheduler that predicts epsilon, v_prediction or sample, got {type(scheduler).__name__} with "
            f"{kind!r}."
        )
    column = (-1, *[1] * (clean.ndim - 1))
    signal, spread = (value.view(column) for value in coefficients(scheduler, timesteps.to(clean.device)))
    noisy = signal * clean + spread * noise
    if flow:
        return noisy, noise - clean
    if kind == "sample":
        return noisy, clean
    return noisy, noise if kind == "epsilon" else signal * noise - spread * clean


def draw_timesteps(scheduler: Scheduler, n: int, generator: torch.Generator | None = None) -> Tensor:
    """(n,) timesteps as the model is trained at: uniform integers in [0, T) for diffusion.

    For flow matching ``T sigma`` with ``sigma`` the logistic function of a standard normal number (Esser et al. 2024,
    equation 19, m = 0, s = 1), moved by the scheduler's own constant ``shift`` (section 5.3.2); float32 in (0, T).
    """
    total = scheduler.config.num_train_timesteps
    if not is_flow(scheduler):
        return torch.randint(total, (n,), generator=generator)
    return _shifted(scheduler, torch.randn(n, generator=generator).sigmoid())


def all_timesteps(scheduler: Scheduler) -> Tensor:
    """Every whole training timestep at which there is some noise: (n,) integers, or floats of a flow model."""
    total = int(scheduler.config.num_train_timesteps)
    return torch.arange(1.0, total) if is_flow(scheduler) else torch.arange(total)


def timesteps_at(scheduler: Scheduler, shares: Tensor) -> Tensor:
    """The timesteps below which a share of the draws of :func:`draw_timesteps` lies: (n,) in (0, 1) to (n,)."""
    total = scheduler.config.num_train_timesteps
    if not is_flow(scheduler):
        whole: Tensor = (shares * total).long().clamp(max=total - 1)
        return whole
    return _shifted(scheduler, torch.special.ndtri(shares.clamp(1e-6, 1 - 1e-6)).sigmoid())


def _shifted(scheduler: Scheduler, sigma: Tensor) -> Tensor:
    """Timesteps of noise levels, after the scheduler's own constant shift."""
    config = scheduler.config
    moves = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
    drawn: Tensor = config.num_train_timesteps * moves * sigma / (1 + (moves - 1) * sigma)
    return drawn


def timestep_bins(total: int, bins: int) -> list[tuple[int, int]]:
    """[low, high) bounds that cut the timesteps [0, total) into ``bins`` parts as equal as integers allow.

    Raises:
        InputError: fewer than one bin, or more bins than timesteps.
    """
    if not 1 <= bins <= total:
        raise InputError(f"Expected between 1 and {total} noise-level bins, got {bins}.")
    edges = [round(i * total / bins) for i in range(bins + 1)]
    return list(itertools.pairwise(edges))
