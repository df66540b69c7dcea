"""Conversions between what denoisers predict, against latents constructed by hand in float64 and diffusers' own."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import NOISE

from diffkit.errors import ScoringError
from diffkit.parameterization import (
    coefficients,
    log_snr,
    noise_over_signal,
    noise_per_prediction,
    predicted_noise,
    predicted_x0,
)

KINDS = ("epsilon", "v_prediction", "sample", "flow")
SHAPE = (3, 4, 5, 2)


def scheduler_of(kind):
    return FlowMatchEulerDiscreteScheduler() if kind == "flow" else DDIMScheduler(**NOISE, prediction_type=kind)


def signal_and_noise(kind, timesteps):
    """Independent reference, float64: a line for a flow, the product of 1 - beta for diffusion."""
    if kind == "flow":
        return 1 - timesteps.double() / 1000, timesteps.double() / 1000
    abar = (1 - scheduler_of(kind).betas.double()).cumprod(0)[timesteps]
    return abar.sqrt(), (1 - abar).sqrt()


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    timesteps=st.lists(st.integers(1, 950), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_x0_and_noise_come_back_from_latents_made_of_them(kind, timesteps, seed):
    """One timestep a row, one for all, and a bare number; and a row's figures do not depend on its neighbours."""
    scheduler, generator, at = scheduler_of(kind), torch.Generator().manual_seed(seed), torch.tensor(timesteps)
    x0, epsilon = (torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    signal, noise = (value.view(-1, 1, 1, 1) for value in signal_and_noise(kind, at))
    latents = signal * x0 + noise * epsilon
    velocity = epsilon - x0 if kind == "flow" else signal * epsilon - noise * x0
    output = {"epsilon": epsilon, "sample": x0}.get(kind, velocity)
    inputs = (output.float(), latents.float())
    estimates = predicted_x0(scheduler, *inputs, at), predicted_noise(scheduler, *inputs, at)
    for estimate, true, small in zip(estimates, (x0, epsilon), (signal, noise), strict=True):
        assert estimate.dtype == torch.float32
        torch.testing.assert_close(estimate * small.float(), (true * small).float(), rtol=1e-4, atol=1e-4)
    for row, timestep in enumerate(timesteps):
        single = tuple(value[row : row + 1] for value in inputs)
        assert torch.equal(predicted_x0(scheduler, *single, torch.tensor(timestep)), estimates[0][row : row + 1])
        assert torch.equal(predicted_noise(scheduler, *single, timestep), estimates[1][row : row + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_are_those_of_the_reference(kind):
    scheduler, at = scheduler_of(kind), torch.tensor([1, 500, 950])
    signal, noise = coefficients(scheduler, at)
    for value, expected in zip((signal, noise), signal_and_noise(kind, at), strict=True):
        torch.testing.assert_close(value, expected.float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(noise_over_signal(scheduler, at), noise / signal)
    if kind != "flow":
        assert torch.equal(coefficients(scheduler, 499.7).signal, signal[1])  # the nearest whole timestep


def test_noise_over_signal_is_the_sigma_of_diffusers_to_the_bit():
    euler = EulerDiscreteScheduler(**NOISE)
    assert torch.equal(noise_over_signal(euler, torch.arange(1000)), euler.sigmas[:-1].flip(0))
    assert log_snr(0.5) == pytest.approx(2 * math.log(2))
    assert log_snr(0.0) == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_of_predictions_as_a_difference_of_noise(kind):
    scheduler, generator = scheduler_of(kind), torch.Generator().manual_seed(0)
    one, other, latents = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    difference = predicted_noise(scheduler, one, latents, 300) - predicted_noise(scheduler, other, latents, 300)
    expected = 1.0 if kind == "flow" else float(difference.norm() / (one - other).norm())
    assert noise_per_prediction(scheduler, torch.tensor([300])) == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_converted_is_refused():
    latents = torch.zeros(1, 2)
    with pytest.raises(ScoringError, match="'score' is unknown"):
        predicted_x0(DDIMScheduler(prediction_type="score"), latents, latents, 1)
    scheduler = DDIMScheduler()
    del scheduler.alphas_cumprod
    with pytest.raises(ScoringError, match="keeps no alphas_cumprod"):
        coefficients(scheduler, 1)
