"""Every scheduler that can be cut, in searches: x0 by hand, looks and calls counted, recordings; any other in none."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from tiny import NOISE, SCHEDULERS, tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_search import brightness

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.parameterization import is_flow
from diffkit.rewards.base import as_reward
from diffkit.seeds import candidate_seed, generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.solvers import SOLVERS, draws_noise
from diffkit.step_plan import plan
from ttsnap import CollectSettings, TTSnapPipeline, collect

PROMPT, STEPS = "a dog", 4
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
FLOW_SCHEDULERS = {
    "flow-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
    "flow-lcm": lambda: FlowMatchLCMScheduler(shift=3.0),
    "flow-dpm++": lambda: DPMSolverMultistepScheduler(**FLOW),
    "flow-dpm-singlestep": lambda: DPMSolverSinglestepScheduler(**FLOW),
    "flow-deis": lambda: DEISMultistepScheduler(**FLOW),
    "flow-unipc": lambda: UniPCMultistepScheduler(**FLOW),
}


def calls_of(pipe, run):
    """(sample, output, timestep) of every call of the scheduler while the stock pipeline runs."""
    calls, step = [], type(pipe.scheduler).step

    class Watched(type(pipe.scheduler)):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            calls.append((sample.float(), model_output.float(), float(timestep)))
            return step(self, model_output, timestep, sample, *args, **kwargs)

    Watched.step.__signature__ = inspect.signature(step)
    Watched.__name__ = type(pipe.scheduler).__name__
    own = type(pipe.scheduler)
    pipe.scheduler.__class__ = Watched
    try:
        run()
    finally:
        pipe.scheduler.__class__ = own
    return calls


def by_hand(scheduler, sample, output, timestep):
    """x0 and noise over signal from what went into a call; sigma of diffusion interpolated between timesteps."""
    if is_flow(scheduler):
        sigma = timestep / 1000
        return sample - sigma * output, min(sigma / (1 - sigma), 1000.0) if sigma < 1 else 1000.0
    table = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double().numpy()
    sigma = float(np.exp(np.interp(timestep, np.arange(1000), np.log(table))))
    if "_step_index" in vars(scheduler) and float(scheduler.init_noise_sigma) > 2:
        return sample - sigma * output, sigma
    signal = (1 + sigma**2) ** -0.5
    return (sample - sigma * signal * output) / signal, sigma


def check_estimates(pipe, options):
    """x0 and the noise level of each call, of candidates that are denoised without a cut."""
    conditioning = encode_prompts(pipe, [PROMPT], options=options["encode"])
    steps, estimates = plan(pipe, STEPS, options["size"], options["extra"]), []
    denoising = Denoising(STEPS, 3.0, *(options["size"] or (None, None)), micro_batch=1, extra=options["extra"])
    fresh = [Candidate(0, 0, generators([11])[0])]
    calls = calls_of(
        pipe,
        lambda: run_segment(
            pipe, fresh, conditioning, denoising, 0, steps.calls, on_estimate=lambda _, x0: estimates.append(x0.float())
        ),
    )
    assert len(calls) == len(estimates) == steps.calls
    for call, estimate, level in zip(calls, estimates, steps.sigmas, strict=True):
        expected, sigma = by_hand(pipe.scheduler, *call)
        assert level == pytest.approx(sigma, rel=2e-2)
        assert (estimate - expected).abs().max() < 5e-3 * expected.abs().max()


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if not name.startswith("pndm")])
def test_x0_and_noise_level_of_each_call_by_hand(name):
    check_estimates(tiny_pipeline(name), {"encode": {}, "size": None, "extra": {}})


SANA = {"encode": FAMILY_ROWS["sana"].options, "size": (32, 32), "extra": {"use_resolution_binning": False}}


@pytest.mark.parametrize("name", FLOW_SCHEDULERS)
def test_x0_and_noise_level_of_each_call_of_a_flow_by_hand(name):
    pipe = family_pipeline("sana")
    pipe.scheduler = FLOW_SCHEDULERS[name]()
    check_estimates(pipe, SANA)


def test_every_scheduler_of_the_table_has_a_row():
    """Cut at every call in test_segments and, of flows, in test_families; x0 by hand above. SCM: test_sana_sprint."""
    rows = {type(build()).__name__ for build in [*SCHEDULERS.values(), *FLOW_SCHEDULERS.values()]}
    assert rows == set(SOLVERS) - {"SCMScheduler"}


def search(scheduler, schedule, **options):
    """A search, and how many rows of the denoiser it ran."""
    pipe, rows = tiny_pipeline(scheduler), []
    pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    out = TTSnapPipeline.from_pipe(pipe, reward=brightness)(
        PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, seed=7, schedule=schedule, micro_batch=1, **options
    )
    return out, sum(rows)


@pytest.mark.parametrize(
    ("scheduler", "schedule", "calls"),
    [
        ("heun", "3:0.5", 4 * 4 + 2 * 3),  # 7 calls: behind the second of a step
        ("heun", "2:0.5+2", 4 * (3 + 2) + 2 * 4),  # inside of a step, and ahead
        ("kdpm2-ancestral", "1:0.5,4:0.5+2", 4 * 2 + 2 * (3 + 2) + 2),
        ("lcm", "0:0.5+1", 4 * (1 + 1) + 2 * 3),
        ("dpm-singlestep-sde", "2:0.5", 4 * 3 + 2),
    ],
)
def test_winners_are_stocks_and_the_ledger_counts_calls(scheduler, schedule, calls):
    out, rows = search(scheduler, schedule, num_candidates=4)
    assert out.ledger.calls == calls
    assert rows == 2 * (calls + out.ledger.padding_calls + out.ledger.calibration_calls)
    assert all(score is not None for look in out.trace for score in look.scores)
    stock = tiny_pipeline(scheduler)
    own = stock(PROMPT, num_inference_steps=STEPS, guidance_scale=3.0, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(own))


def test_a_budget_counts_calls_not_steps():
    """Eight whole candidates of Heun's method are eight times seven calls."""
    out, _ = search("heun", "", budget="8x")
    assert (len(out.trace[0].candidates), out.ledger.calls) == (8, 8 * 7)


@pytest.mark.parametrize("scheduler", ["heun", "lcm"])
def test_recordings_have_an_estimate_of_each_call(scheduler, tmp_path):
    settings = CollectSettings(candidates=2, num_inference_steps=STEPS, guidance_scale=1.0, micro_batch=1,
                               lookahead=((1, 2),))  # fmt: skip
    made = collect(tiny_pipeline(scheduler), [PROMPT], {"b": as_reward(brightness)}, settings, out=tmp_path)
    assert made.steps == tuple(range(7 if scheduler == "heun" else 4))
    for index, score in enumerate(made[0].finals["b"].tolist()):
        stock = tiny_pipeline(scheduler)
        generator = generators([candidate_seed(0, 0, index)])[0]
        image = stock(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, generator=generator, output_type="pt")[0]
        assert score == pytest.approx(float(brightness(image, [PROMPT])), abs=1e-3)


@pytest.mark.parametrize(("scheduler", "eta", "noisy"), [
    ("ddim", 0.0, False), ("ddim", 0.5, True), ("tcd", 0.0, False), ("tcd", 0.5, True), ("lcm", 0.0, True),
    ("ddpm", 0.0, True), ("kdpm2", 0.0, False), ("kdpm2-ancestral", 0.0, True), ("dpm-singlestep-sde", 0.0, True),
    ("dpm-singlestep", 0.0, False), ("heun", 0.0, False),
])  # fmt: skip
def test_noise_is_drawn_where_the_table_says_so(scheduler, eta, noisy):
    """Generators that denoising has advanced have drawn noise."""
    pipe, source = tiny_pipeline(scheduler), generators([3])[0]
    latents = torch.randn((1, 4, 16, 16), generator=generators([4])[0])
    before = source.get_state()
    pipe(PROMPT, num_inference_steps=3, guidance_scale=1.0, eta=eta, latents=latents, generator=source)
    assert torch.equal(before, source.get_state()) is not noisy
    assert draws_noise(pipe.scheduler, eta) is noisy


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
def test_division_by_zero_is_refused(kind):
    pipe = tiny_pipeline()
    pipe.scheduler = kind(**NOISE, rescale_betas_zero_snr=True, clip_sample=kind is TCDScheduler)
    images = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=1.0, output_type="pt").images
    assert images.isnan().any()  # what diffusers makes of it
    with pytest.raises(InputError, match="divides by zero and every image is NaN"):
        plan(pipe, STEPS)


class Community(DDIMScheduler):
    """A scheduler that is not of diffusers."""


@pytest.mark.parametrize("kind", [DDIMParallelScheduler, SASolverScheduler, Community])
def test_whole_images_are_tried_by_any_scheduler(kind):
    """SA-Solver carries a state and draws noise; nothing of it is cut."""
    stock = tiny_pipeline()
    stock.scheduler = kind(**NOISE)
    pipe = TTSnapPipeline.from_pipe(stock, reward=brightness)
    options = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
    for search in ({"num_candidates": 3}, {"search": "zero-order", "budget": "4x"}, {"budget": "3x"}):
        out = pipe(PROMPT, **options, seed=7, micro_batch=1, **search)
        assert out.ledger.calls == STEPS * len({index for look in out.trace for index in look.candidates})
        assert {(look.step, look.sigma) for look in out.trace} == {(STEPS - 1, None)}
        assert [look.to_dict()["sigma"] for look in out.trace] == [None] * len(out.trace)
    own = stock(PROMPT, **options, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(own))
    assert type(stock.scheduler) is kind
    halved = pipe(PROMPT, **options, seed=7, search="halving", budget="4x")
    assert len(halved.trace) == 1
    for refused in ({"schedule": "1:0.5"}, {"search": "lookahead", "budget": "8x"}, {"search": "fk", "budget": "4x"}):
        with pytest.raises(
            InputError, match=rf"{kind.__name__} cannot be suspended in mid-denoising; give schedule=''"
        ):
            pipe(PROMPT, **options, **refused)
    with pytest.raises(InputError, match=f"{kind.__name__} cannot be suspended"):
        run_segment(stock, [Candidate(0, 0, generators([1])[0])], encode_prompts(stock, [PROMPT]), Denoising(4), 0, 2)


def test_figures_of_few_steps_by_hand():
    """T calls, a decoding and a score; against one call and a look, and half of the rest."""
    path = Path(__file__).resolve().parents[1] / "docs" / "figures" / "few_steps.json"
    counted = json.loads(path.read_text(encoding="utf-8"))
    call, decode, verify = (counted["flop"][name] for name in ("call", "decode", "verify"))
    for steps, ratios in counted["seeds"].items():
        rest = (int(steps) - 1) * call + decode + verify
        assert ratios["whole autoencoder"] == pytest.approx((call + rest) / (call + decode + verify + rest / 2))
        assert ratios["free"] == pytest.approx((call + rest - verify) / (call + (rest - verify) / 2))
