"""Noise levels of the latents that go into each call of the denoiser, as a scheduler's timesteps set them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Scheduler
from diffkit.parameterization import PURE_NOISE, Coefficients, coefficients, is_flow, is_trigflow, noise_over_signal

__all__ = ["blind_steps", "call_sigmas", "has_unit_signal", "latent_coefficients", "noise_levels",
           "refuse_division_by_zero"]  # fmt: skip

UNIT_SIGNAL = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
#: Schedulers that divide by a signal that may be 0, and whether they clip what comes of it; others keep it above.
DIVIDING = {
    "DDIMScheduler": True,
    "DDPMScheduler": True,
    "LCMScheduler": True,
    "PNDMScheduler": False,
    "TCDScheduler": False,
}


def has_unit_signal(scheduler: Scheduler) -> bool:
    """Whether it carries latents as ``x0 + sigma epsilon`` and scales them for the denoiser."""
    return type(scheduler).__name__ in UNIT_SIGNAL


def call_sigmas(scheduler: Scheduler) -> Tensor | None:
    """The scheduler's own sigmas at each call of the denoiser, on the host; None where it keeps none.

    The KDPM2 solvers call the denoiser at a step's start and then between its ends, at ``sigmas_interpol``.
    """
    sigmas, calls = getattr(scheduler, "sigmas", None), len(scheduler.timesteps)
    if sigmas is None:
        return None
    if (middles := getattr(scheduler, "sigmas_interpol", None)) is not None:
        own: Tensor = sigmas[:calls].cpu().clone()
        shift = 1 if "Ancestral" in type(scheduler).__name__ else 0
        own[1::2] = middles.cpu()[torch.arange(1, calls, 2) - shift].to(own.dtype)
        return own
    return torch.as_tensor(sigmas)[:-1].cpu() if len(sigmas) == calls + 1 else None


def noise_levels(scheduler: Scheduler) -> list[float]:
    """Noise over signal of the latents that go into each call of the present timesteps, never rising.

    As :func:`diffkit.parameterization.noise_over_signal`, by the scheduler's own ``sigmas`` where it keeps them. Pure
    noise counts as :data:`diffkit.parameterization.PURE_NOISE`: it has no finite ratio. Heun's method comes back to a
    level: two calls share it.
    """
    sigmas = call_sigmas(scheduler)
    if is_trigflow(scheduler):
        levels = noise_over_signal(scheduler, scheduler.timesteps[:-1].cpu()).tolist()
    elif sigmas is None:
        levels = noise_over_signal(scheduler, scheduler.timesteps.long().cpu()).tolist()
    elif is_flow(scheduler):
        levels = [level / (1 - level) if level < 1 else PURE_NOISE for level in map(float, sigmas)]
    else:
        levels = [float(sigma) for sigma in sigmas]
    return [min(level, PURE_NOISE) for level in levels]


def latent_coefficients(scheduler: Scheduler, step: int) -> Coefficients:
    """Signal and noise, scalars, of the latents that go into a call of the present timesteps, as the loop carries them.

    ``x = signal x0 + noise epsilon``, by the scheduler's own ``sigmas`` where it keeps them; the signal is 1 where it
    scales latents for the denoiser.
    """
    sigmas = call_sigmas(scheduler)
    if sigmas is None:
        return coefficients(scheduler, scheduler.timesteps[step].cpu())
    sigma = sigmas[step].float()
    if is_flow(scheduler):
        return Coefficients(1 - sigma, sigma)
    if has_unit_signal(scheduler):
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
    name, config = type(scheduler).__name__, scheduler.config
    if not blind or name not in DIVIDING:
        return
    if not (DIVIDING[name] and (config.get("clip_sample") or config.get("thresholding"))):
        raise InputError(
            f"This {name} begins from pure noise (zero terminal SNR), and the model predicts epsilon: its first step "
            f"divides by zero and every image is NaN; set rescale_betas_zero_snr to False, timestep_spacing to "
            f"leading, or prediction_type to v_prediction if the model was trained so."
        )
