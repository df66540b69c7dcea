"""``timesteps=`` and ``sigmas=``: looks, costs and lookahead follow them; the reference is the stock pipeline."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from tiny import tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_search import brightness

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.families import family_of, stock_class
from diffkit.families.base import keywords_of
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan
from ttsnap import TTSnapPipeline

TIMESTEPS, SIGMAS = [901, 700, 640, 300, 60], [1.0, 0.7, 0.62, 0.2, 0.1]
DIFFUSION_SIGMAS = [14.0, 8.0, 3.0, 1.0, 0.3, 0.0]
FLOW = ["sd3", "flux", "chroma", "lumina2", "z-image", "qwen-image", "aura-flow"]
SEARCH = {"num_candidates": 3, "schedule": "1:0.7+1,3:0.5", "seed": 5, "micro_batch": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


def search_equals_stock(pipe: Any, **options: Any) -> Any:
    out = TTSnapPipeline.from_pipe(pipe, reward=brightness)("a dog", **options, **SEARCH)
    reference = pipe("a dog", **options, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(reference))
    usual = {name: value for name, value in options.items() if name not in ("timesteps", "sigmas")}
    plain = pipe("a dog", **usual, num_inference_steps=5, generator=generators(out.seeds)[0]).images[0]
    assert not np.array_equal(np.asarray(plain), np.asarray(reference))
    assert [look.step for look in out.trace] == [1, 3, 4]
    assert out.ledger.calls == 3 * 2 + 3 + 2 * 2 + 1
    return out


@pytest.mark.parametrize("name", FLOW)
def test_sigmas_of_flow_pipelines(name):
    row = FAMILY_ROWS[name]
    out = search_equals_stock(family_pipeline(name), **row.options, **row.unguided, sigmas=SIGMAS)
    assert sorted((look.sigma for look in out.trace), reverse=True) == [look.sigma for look in out.trace]


@pytest.mark.parametrize("scheduler", ["euler", "dpm++", "dpm-sde"])
def test_timesteps(scheduler):
    out = search_equals_stock(tiny_pipeline(scheduler), guidance_scale=3.0, timesteps=TIMESTEPS)
    abar = tiny_pipeline("ddim").scheduler.alphas_cumprod[[TIMESTEPS[look.step] for look in out.trace]]
    assert [look.sigma for look in out.trace] == pytest.approx((((1 - abar) / abar) ** 0.5).tolist(), rel=1e-3)


def test_sigmas_of_a_diffusion_pipeline():
    out = search_equals_stock(family_pipeline("sdxl"), guidance_scale=3.0, sigmas=DIFFUSION_SIGMAS)
    assert [look.sigma for look in out.trace] == pytest.approx([DIFFUSION_SIGMAS[look.step] for look in out.trace])


@pytest.mark.parametrize("given", [{"timesteps": TIMESTEPS}, {"sigmas": DIFFUSION_SIGMAS}])
def test_every_cut(given):
    pipe = tiny_pipeline("euler")
    conditioning = encode_prompts(pipe, ["a dog"])
    denoising = Denoising(50, 3.0, micro_batch=1, extra=given)
    calls = plan(pipe, 50, extra=given).calls
    assert calls == 5
    uncut = pipe("a dog", guidance_scale=3.0, **given, generator=generators([7])[0], output_type="latent").images
    for cuts in [[], [1, 3], [2, 4], list(range(1, calls))]:
        alive = [Candidate(0, 0, generators([7])[0])]
        for start, stop in itertools.pairwise([0, *cuts, calls]):
            alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
        assert torch.equal(alive[0].latents, uncut), cuts


def test_the_schedule_of_a_budget_follows_the_steps():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline("euler"), reward=brightness)
    out = pipe("a dog", timesteps=TIMESTEPS, guidance_scale=3.0, search="lookahead", budget="4x", seed=1)
    assert out.ledger.cost.at(out.ledger.flops) <= out.ledger.budget["limit"]
    assert out.trace[-1].step == len(TIMESTEPS) - 1


@pytest.mark.parametrize(
    ("scheduler", "given", "sentence"),
    [
        ("euler", {"timesteps": TIMESTEPS, "sigmas": SIGMAS}, "Give timesteps or sigmas, not both"),
        ("euler", {"timesteps": []}, "timesteps must be a list of numbers"),
        ("ddim", {"timesteps": TIMESTEPS}, "DDIMScheduler refuses these timesteps"),
        ("dpm++", {"sigmas": SIGMAS}, "DPMSolverMultistepScheduler refuses these sigmas"),
        ("euler", {"timesteps": TIMESTEPS, "schedule": "7:0.5"}, "step"),
    ],
)
def test_steps_that_do_not_fit_are_refused(scheduler, given, sentence):
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(scheduler), reward=brightness)
    with pytest.raises(InputError, match=sentence):
        pipe("a dog", **{**SEARCH, **given})


def test_sigmas_that_the_stock_pipeline_ignores_are_refused():
    pipe = family_pipeline("flux")
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    with pytest.raises(InputError, match="ignores sigmas where its scheduler says use_flow_sigmas"):
        TTSnapPipeline.from_pipe(pipe, reward=brightness)("a dog", sigmas=SIGMAS, **FAMILY_ROWS["flux"].options)


def test_what_a_stock_pipeline_has_not_got_is_no_keyword_here():
    assert "timesteps" not in keywords_of(stock_class(family_of(family_pipeline("flux"))))
    with pytest.raises(InputError, match="FluxPipeline takes no timesteps"):
        TTSnapPipeline.from_pipe(family_pipeline("flux"), reward=brightness)("a dog", timesteps=TIMESTEPS)


def test_best_of_n_takes_them_by_a_scheduler_that_is_not_known():
    """A community's scheduler cannot be cut, and nothing is: the steps that count are those of the call."""
    pipe = tiny_pipeline("euler")
    pipe.scheduler.__class__ = type("CommunityScheduler", (type(pipe.scheduler),), {})
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    out = search("a dog", timesteps=TIMESTEPS, num_candidates=2, seed=5, micro_batch=1)
    stock = pipe("a dog", timesteps=TIMESTEPS, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(stock))
