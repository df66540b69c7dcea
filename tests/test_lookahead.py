"""Lookahead: its steps by hand, calls that are all left the pipeline's own, the candidates as before."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import NOISE, SCHEDULERS, tiny_pipeline

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.lookahead import big_steps, ddim_step, extrapolated, look_ahead
from diffkit.parameterization import Coefficients
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan

STEPS, START = 6, 2


def suspended(pipe, micro_batch=2, at=START):
    """Three candidates after two calls, with what they are denoised by."""
    conditioning, denoising = encode_prompts(pipe, ["a dog"]), Denoising(STEPS, 3.0, micro_batch=micro_batch)
    fresh = [Candidate(index, 0, generator) for index, generator in enumerate(generators([11, 12, 13]))]
    return run_segment(pipe, fresh, conditioning, denoising, 0, at), conditioning, denoising


@pytest.mark.parametrize(
    ("start", "stop", "calls", "steps"),
    [(2, 20, 3, [5, 9, 12]), (2, 20, 1, [8]), (5, 7, 2, [5, 6]), (1, 4, 2, [2, 3]), (7, 12, 5, [7, 8, 9, 10, 11])],
)
def test_big_steps_are_spaced_equally_with_twice_the_space_behind_the_last(start, stop, calls, steps):
    assert big_steps(start, stop, calls) == steps


@pytest.mark.parametrize(("calls", "left"), [(0, 4), (5, 4), (-1, 4)])
def test_calls_that_are_not_left_are_refused(calls, left):
    with pytest.raises(InputError, match=f"ahead by {calls} calls: at least 1 and at most the {left}"):
        big_steps(2, 2 + left, calls)


def test_a_step_between_noise_levels_is_eulers():
    """On the lines of a flow x + (sigma' - sigma) velocity; in noise over signal x + (sigma' - sigma) noise."""
    x0, noise = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    high, low, one = torch.tensor(0.7), torch.tensor(0.2), torch.tensor(1.0)
    flow = ddim_step(0.3 * x0 + 0.7 * noise, x0, Coefficients(1 - high, high), Coefficients(1 - low, low))
    torch.testing.assert_close(flow, 0.3 * x0 + 0.7 * noise + (0.2 - 0.7) * (noise - x0))
    karras = ddim_step(x0 + 0.7 * noise, x0, Coefficients(one, high), Coefficients(one, low))
    torch.testing.assert_close(karras, x0 + 0.7 * noise + (0.2 - 0.7) * noise)


def test_an_extrapolated_estimate_after_pure_noise_or_at_one_level_is_the_estimate():
    x0, before = torch.ones(2), torch.zeros(2)
    levels = [Coefficients(torch.tensor(signal), torch.tensor(1 - signal)) for signal in (0.0, 0.3, 0.6)]
    assert torch.equal(extrapolated(x0, before, levels), x0)
    levels[0] = Coefficients(torch.tensor(0.1), torch.tensor(0.9))
    assert (extrapolated(x0, before, levels) > 1).all()
    assert torch.equal(extrapolated(x0, before, [levels[1], levels[1], levels[2]]), x0)  # as Heun's method makes them


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_call_before_the_last_is_the_last_and_nothing_of_a_candidate_changes(scheduler):
    pipe = tiny_pipeline(scheduler)
    last = plan(pipe, STEPS).calls - 1
    alive, conditioning, denoising = suspended(pipe, at=last)
    latents, noise = [one.latents.clone() for one in alive], [one.generator.get_state() for one in alive]
    before, rows = dict(pipe.scheduler.__dict__), []
    ahead = look_ahead(pipe, alive, conditioning, denoising, 1, on_step=lambda *counts: rows.append(counts))
    assert rows == [(2, 0), (1, 1)]
    assert type(pipe.scheduler).__module__.startswith("diffusers")
    assert pipe.scheduler.__dict__ == before
    early = suspended(pipe)[0]
    kept_early = [one.latents.clone() for one in early]
    look_ahead(pipe, early, conditioning, denoising, 2)
    assert all(torch.equal(one.latents, kept) for one, kept in zip(early, kept_early, strict=True))
    assert all(torch.equal(one.latents, kept) for one, kept in zip(alive, latents, strict=True))
    assert all(torch.equal(one.generator.get_state(), kept) for one, kept in zip(alive, noise, strict=True))
    following = run_segment(pipe, alive, conditioning, denoising, last, last + 1)
    for estimate, candidate in zip(ahead, following, strict=True):
        torch.testing.assert_close(estimate, candidate.x0, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_estimates_are_bounded_where_the_schedulers_own_are(option):
    pipe = tiny_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **{option: True})
    alive, conditioning, denoising = suspended(pipe, at=STEPS - 1)
    [estimate, *_] = look_ahead(pipe, alive, conditioning, denoising, 1)
    assert estimate.abs().max() == 1
    following = run_segment(pipe, alive, conditioning, denoising, STEPS - 1, STEPS)
    torch.testing.assert_close(estimate, following[0].x0, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_all_calls_that_are_left_are_the_denoising_itself_by_the_same_solver(kind):
    pipe = tiny_pipeline("dpm++")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    alive, conditioning, denoising = suspended(pipe)
    ahead = look_ahead(pipe, alive, conditioning, denoising, STEPS - START)
    for estimate, candidate in zip(ahead, run_segment(pipe, alive, conditioning, denoising, START, STEPS), strict=True):
        torch.testing.assert_close(estimate, candidate.x0, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_big_steps_of_a_linear_denoiser_by_hand(scheduler, kind):
    """Two calls after step 2 of 6, so at steps 3 and 4, of a denoiser that returns 0.3 of its input."""
    pipe = tiny_pipeline(scheduler)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type=kind)
    pipe.unet.forward = lambda sample, *args, **kwargs: (0.3 * sample,)
    alive, conditioning, denoising = suspended(pipe)
    ahead = look_ahead(pipe, alive, conditioning, denoising, 2)
    beta = torch.linspace(NOISE["beta_start"] ** 0.5, NOISE["beta_end"] ** 0.5, 1000, dtype=torch.float64).square()
    alpha_bar = (1 - beta).cumprod(0)
    pipe.scheduler.set_timesteps(STEPS)
    steps = (1, 2, 3, 4)
    before, now, first, second = (float(alpha_bar[round(float(pipe.scheduler.timesteps[step]))]) for step in steps)

    def estimate(x, alpha_bar):
        """Of latents with signal and noise whose squares sum to 1."""
        signal, spread = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        return (x - spread * 0.3 * x) / signal if kind == "epsilon" else signal * x - spread * 0.3 * x

    for candidate, result in zip(alive, ahead, strict=True):
        x = candidate.latents.double() * (now**0.5 if scheduler == "euler" else 1.0)
        moved = _led(x, candidate.x0.double(), now, first)
        x0 = estimate(moved, first)
        slope = (x0 - candidate.x0.double()) / (log_snr(first) - log_snr(before))  # of the estimate, in log-SNR
        midway = x0 + slope * (log_snr(second) - log_snr(first)) / 2
        expected = estimate(_led(moved, midway, first, second), second)
        torch.testing.assert_close(result.double(), expected, rtol=2e-3, atol=2e-3)


def log_snr(alpha_bar):
    return math.log(alpha_bar / (1 - alpha_bar))


def _led(x, x0, now, then):
    """Where an estimate leads: the same noise at another level."""
    noise = (x - now**0.5 * x0) / (1 - now) ** 0.5
    return then**0.5 * x0 + (1 - then) ** 0.5 * noise


def test_what_is_not_in_mid_denoising_cannot_look_ahead():
    pipe = tiny_pipeline()
    alive, conditioning, denoising = suspended(pipe, at=1)
    with pytest.raises(InputError, match="at most the 5 that are left"):
        look_ahead(pipe, alive, conditioning, denoising, 6)
    with pytest.raises(InputError, match="same step"):
        look_ahead(pipe, [Candidate(0, 0, generators([1])[0])], conditioning, denoising, 1)
