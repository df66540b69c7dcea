"""What a denoiser's output means: signal and noise at a timestep, and conversions between epsilon, v, x0 and velocity.

Noisy latents are ``x_t = signal x0 + noise epsilon`` everywhere; only the two coefficients and what the denoiser
predicts differ from model to model:

==============  ==================  ======================  =============================  ============================
model           signal              noise                   output                         source
==============  ==================  ======================  =============================  ============================
epsilon         sqrt(abar_t)        sqrt(1 - abar_t)        epsilon                        Ho et al. 2020, eq. 4
v_prediction    sqrt(abar_t)        sqrt(1 - abar_t)        v = signal epsilon - noise x0  Salimans and Ho 2022, app. D
sample          sqrt(abar_t)        sqrt(1 - abar_t)        x0                             Salimans and Ho 2022, app. D
flow matching   1 - t / T           t / T                   velocity = epsilon - x0        Esser et al. 2024, section 2
TrigFlow        cos(t)              sin(t)                  v = signal epsilon - noise x0  Lu and Song 2024, section 3
==============  ==================  ======================  =============================  ============================

All are pure functions on tensors, in float32, differentiable in latents and outputs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffkit.errors import ScoringError
from diffkit.families import Scheduler

__all__ = [
    "PREDICTION_TYPES",
    "PURE_NOISE",
    "Coefficients",
    "coefficients",
    "is_flow",
    "is_pure_noise",
    "is_silent",
    "is_trigflow",
    "log_snr",
    "noise_over_signal",
    "noise_per_prediction",
    "noise_variance",
    "predicted_noise",
    "predicted_x0",
    "signal_over_noise",
    "x0_of_output",
    "x0_of_velocity",
]

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")  # of diffusion
#: Noise over signal from which latents count as pure noise, which has no finite ratio: where flow models begin, and
#: diffusion models of zero terminal SNR (Lin et al. 2023). Above any level that a model without it reaches.
PURE_NOISE = 1000.0


class Coefficients(NamedTuple):
    """Of the clean latents and of unit noise in noisy latents, both float32 in [0, 1], shaped as the timesteps."""

    signal: Tensor
    noise: Tensor


def is_flow(scheduler: Scheduler) -> bool:
    """Whether the model under this scheduler predicts a velocity on straight lines from data to noise."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def is_trigflow(scheduler: Scheduler) -> bool:
    """Whether timesteps are angles, from pi / 2 at pure noise to 0, and the model predicts v."""
    return bool(scheduler.config.get("prediction_type") == "trigflow")


def coefficients(scheduler: Scheduler, timesteps: Tensor | float) -> Coefficients:
    """Signal and noise in the latents at training timesteps: ``x_t = signal x0 + noise epsilon``.

    Diffusion: ``sqrt(abar_t), sqrt(1 - abar_t)`` (Ho et al. 2020, equation 4) at the nearest whole timestep; flow
    matching: ``1 - sigma, sigma`` with ``sigma = t / T`` (Esser et al. 2024, section 2).

    Args:
        timesteps: one or many, in the scheduler's units.

    Raises:
        ScoringError: the scheduler knows no alpha-bar of training timesteps.

    Example:
        >>> from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
        >>> [round(float(value), 3) for value in coefficients(DDIMScheduler(), 500)]
        [0.279, 0.96]
        >>> [round(float(value), 3) for value in coefficients(FlowMatchEulerDiscreteScheduler(), 500)]
        [0.5, 0.5]
    """
    if is_flow(scheduler):
        sigma = _sigma(scheduler, timesteps)
        return Coefficients(1 - sigma, sigma)
    if is_trigflow(scheduler):
        angle = torch.as_tensor(timesteps).float()
        return Coefficients(angle.cos().clamp(min=0), angle.sin())
    alpha_bar = _alpha_bar(scheduler, timesteps)
    return Coefficients(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def noise_over_signal(scheduler: Scheduler, timesteps: Tensor | float) -> Tensor:
    """Noise level as Karras et al. 2022 count it, >= 0: ``sqrt((1 - abar) / abar)``, or ``sigma / (1 - sigma)``.

    By the very expression of diffusers' Euler scheduler, so that the figures are equal to its ``sigmas``.
    """
    if is_flow(scheduler):
        sigma = _sigma(scheduler, timesteps)
        return sigma / (1 - sigma)
    if is_trigflow(scheduler):
        signal, noise = coefficients(scheduler, timesteps)
        return noise / signal
    alpha_bar = _alpha_bar(scheduler, timesteps)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def signal_over_noise(scheduler: Scheduler, timesteps: Tensor | float) -> Tensor:
    """Root of the signal-to-noise ratio of power, >= 0: ``sqrt(abar / (1 - abar))``, or ``(1 - sigma) / sigma``."""
    if is_flow(scheduler):
        sigma = _sigma(scheduler, timesteps)
        return (1 - sigma) / sigma
    alpha_bar = _alpha_bar(scheduler, timesteps)
    return (alpha_bar / (1 - alpha_bar)).sqrt()


def is_pure_noise(scheduler: Scheduler, timestep: Tensor | float) -> bool:
    """Whether the latents at a timestep hold no signal that counts, see :data:`PURE_NOISE`.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> [is_pure_noise(DDIMScheduler(rescale_betas_zero_snr=zero), 999) for zero in (False, True)]
        [False, True]
    """
    return bool(torch.as_tensor(noise_over_signal(scheduler, timestep)).flatten()[0] >= PURE_NOISE)


def is_silent(scheduler: Scheduler, timestep: Tensor | float) -> bool:
    """Whether :func:`predicted_noise` is the latents themselves, whatever the denoiser returns.

    At pure noise it is, unless the denoiser predicts epsilon: what the model has to say is in its output.
    """
    predicts_noise = not is_flow(scheduler) and _prediction_type(scheduler) == "epsilon"
    return not predicts_noise and is_pure_noise(scheduler, timestep)


def noise_variance(scheduler: Scheduler, timesteps: Tensor | float) -> Tensor:
    """Variance of the noise in the latents, in [0, 1]: ``1 - abar``, or ``sigma^2``; it turns a squared error of a
    velocity into one of x0."""
    return _sigma(scheduler, timesteps).square() if is_flow(scheduler) else 1 - _alpha_bar(scheduler, timesteps)


def log_snr(sigma: float) -> float:
    """``-2 ln(sigma)``, log of the signal-to-noise ratio of power (Kingma et al. 2021, equation 3); higher is cleaner.

    Args:
        sigma: noise over signal, see :func:`noise_over_signal`; infinite log-SNR at 0.
    """
    return -2.0 * math.log(sigma) if sigma > 0 else math.inf


def predicted_x0(scheduler: Scheduler, output: Tensor, latents: Tensor, timesteps: Tensor | float) -> Tensor:
    """Tweedie's estimate of the clean latents, float32 and shaped as the latents.

    ``(x_t - noise epsilon) / signal``, ``signal x_t - noise v`` (Salimans and Ho 2022, appendix D), the output itself
    of a model that predicts x0, or ``x_t - sigma velocity`` of a flow model.

    Args:
        output: of the denoiser, shaped as the latents.
        latents: (B, ...) noisy, with the coefficients of :func:`coefficients`.
        timesteps: one for all rows, or (B,).

    Raises:
        ScoringError: the prediction type is unknown, or the scheduler knows no alpha-bar.
    """
    return x0_of_output(scheduler, output, latents, _columns(scheduler, latents, timesteps))


def x0_of_output(scheduler: Scheduler, output: Tensor, latents: Tensor, at: Coefficients) -> Tensor:
    """As :func:`predicted_x0`, for latents whose signal and noise are known.

    Args:
        at: scalars, or shaped so that they multiply (B, ...) latents; of a diffusion model their squares sum to 1.

    Raises:
        ScoringError: the prediction type is unknown.
    """
    output, latents = output.float(), latents.float()
    signal, noise = at
    if is_flow(scheduler):
        return x0_of_velocity(output, latents, noise)
    kind = _prediction_type(scheduler)
    if kind == "sample":
        return output
    return signal * latents - noise * output if kind == "v_prediction" else (latents - noise * output) / signal


def x0_of_velocity(velocity: Tensor, latents: Tensor, sigma: Tensor | float) -> Tensor:
    """``x_t - sigma velocity`` of a flow model, float32 (Esser et al. 2024, section 2)."""
    return latents.float() - sigma * velocity.float()


def predicted_noise(scheduler: Scheduler, output: Tensor, latents: Tensor, timesteps: Tensor | float) -> Tensor:
    """The denoiser's output as predicted noise, float32 and shaped as the latents.

    The output itself of a model that predicts epsilon, ``signal v + noise x_t`` (Salimans and Ho 2022, appendix D),
    ``(x_t - signal x0) / noise``, or ``x_t + (1 - sigma) velocity`` of a flow model.

    Args and errors as for :func:`predicted_x0`.
    """
    output, latents = output.float(), latents.float()
    signal, noise = _columns(scheduler, latents, timesteps)
    if is_flow(scheduler):
        return latents + signal * output
    kind = _prediction_type(scheduler)
    if kind == "epsilon":
        return output
    return signal * output + noise * latents if kind == "v_prediction" else (latents - signal * output) / noise


def noise_per_prediction(scheduler: Scheduler, timestep: Tensor | float) -> float:
    """Norm of a difference of predicted noises over the norm of the difference of outputs, at the same latents.

    1 of epsilon, ``signal`` of v and ``signal / noise`` of x0, by the formulas of :func:`predicted_noise`. Of a flow
    model 1: its velocities are compared as they are; so are the outputs for v and x0 at pure noise, where the noise
    says nothing (:func:`is_silent`).
    """
    if is_flow(scheduler) or _prediction_type(scheduler) == "epsilon" or is_silent(scheduler, timestep):
        return 1.0
    signal, noise = (float(value.flatten()[0]) for value in coefficients(scheduler, timestep))
    return signal if _prediction_type(scheduler) == "v_prediction" else signal / noise


def _alpha_bar(scheduler: Scheduler, timesteps: Tensor | float) -> Tensor:
    """Cumulative product of ``1 - beta`` at the nearest whole timesteps, float32 in [0, 1]."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise ScoringError(f"{type(scheduler).__name__} keeps no alphas_cumprod; use a DDIM-like scheduler")
    indices = torch.as_tensor(timesteps).round().long()
    alpha_bar: Tensor = table.to(indices.device, torch.float32)[indices]
    return alpha_bar


def _sigma(scheduler: Scheduler, timesteps: Tensor | float) -> Tensor:
    """Noise level of a flow model, float32 in [0, 1]."""
    sigma: Tensor = torch.as_tensor(timesteps).float() / scheduler.config.num_train_timesteps
    return sigma


def _columns(scheduler: Scheduler, latents: Tensor, timesteps: Tensor | float) -> Coefficients:
    """Coefficients on the latents' device that multiply (B, ...) latents row by row."""
    at = torch.as_tensor(timesteps).to(latents.device)
    shape = (-1, *[1] * (latents.ndim - 1)) if at.ndim else ()
    return Coefficients(*(value.view(shape) for value in coefficients(scheduler, at)))


def _prediction_type(scheduler: Scheduler) -> str:
    kind: str = "v_prediction" if is_trigflow(scheduler) else scheduler.config.prediction_type
    if kind not in PREDICTION_TYPES:
        raise ScoringError(f"prediction type {kind!r} is unknown; expected epsilon, v_prediction or sample")
    return kind
