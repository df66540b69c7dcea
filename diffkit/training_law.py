"""What a denoiser was trained on: noisy latents and the target it should predict there, by its own scheduler."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Scheduler

__all__ = ["Noised", "noised", "timestep_bins"]

Noised = tuple[Tensor, Tensor]  # noisy latents and the target, both (B, C, h, w)


def noised(scheduler: Scheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
    """Noisy latents ``sqrt(abar_t) x + sqrt(1 - abar_t) noise`` and the training target at them.

    The target is the noise for "epsilon", ``sqrt(abar_t) noise - sqrt(1 - abar_t) x`` for "v_prediction" (Salimans
    and Ho 2022, appendix D), ``x`` for "sample". Differentiable in ``clean`` and ``noise``.

    Args:
        scheduler: with ``alphas_cumprod`` (T,) and a ``prediction_type``.
        clean: (B, C, h, w) latents as the denoiser sees them.
        noise: (B, C, h, w) standard normal.
        timesteps: (B,) integers in [0, T).

    Raises:
        InputError: the scheduler predicts something else, or knows no alpha-bar (flow matching).
    """
    abar = getattr(scheduler, "alphas_cumprod", None)
    kind = scheduler.config.get("prediction_type")
    if abar is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise InputError(
            f"Expected a scheduler that predicts epsilon, v_prediction or sample, got {type(scheduler).__name__} with "
            f"{kind!r}."
        )
    level = abar.to(clean.device, torch.float32)[timesteps.to(clean.device)].view(-1, 1, 1, 1)
    signal, spread = level.sqrt(), (1 - level).sqrt()
    noisy = signal * clean + spread * noise
    if kind == "sample":
        return noisy, clean
    return noisy, noise if kind == "epsilon" else signal * noise - spread * clean


def timestep_bins(total: int, bins: int) -> list[tuple[int, int]]:
    """[low, high) bounds that cut the timesteps [0, total) into ``bins`` parts as equal as integers allow.

    Raises:
        InputError: fewer than one bin, or more bins than timesteps.
    """
    if not 1 <= bins <= total:
        raise InputError(f"Expected between 1 and {total} noise-level bins, got {bins}.")
    edges = [round(i * total / bins) for i in range(bins + 1)]
    return list(itertools.pairwise(edges))
