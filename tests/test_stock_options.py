"""Options of the stock call that count the loop's steps: a search makes the stock pipeline's images with them."""

from __future__ import annotations

import functools
import inspect
import itertools
import logging
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ConsistencyDecoderVAE, DPMSolverMultistepScheduler
from PIL.Image import Image
from test_families import FLOW_SIGMAS, STEPS, call_options, parts
from tiny import tiny_pipeline
from tiny_edits import EDITS, edit_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_search import brightness, shared_family

from diffkit.errors import InputError
from diffkit.families import default_size
from diffkit.seeds import generators
from diffkit.segments import Candidate, run_segment
from diffkit.step_plan import plan as plan_of
from ttsnap import TTSnapPipeline

SLG = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.8}


def search(name: str, **options: Any) -> Any:
    pipe = TTSnapPipeline.from_pipe(shared_family(name), reward=brightness)
    given = {**call_options(name), "seeds": [5, 6], "schedule": "", "micro_batch": 1, **options}
    return pipe("a dog", **{key: value for key, value in given.items() if key != "generator"})


def stock(name: str, seed: int | None, **options: Any) -> Any:
    assert seed is not None
    return shared_family(name)("a dog", **{**call_options(name), **options, "generator": generators([seed])[0]})[0]


WHOLE = {
    "sd1-controlnet": {"control_guidance_end": 0.5},
    "lumina2": {"cfg_trunc_ratio": 0.5},
    "sd3": SLG,
    "sdxl": {"denoising_end": 0.6},
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_denoisings_are_the_stock_pipelines(name):
    out = search(name, **WHOLE[name], output_type="pt")
    expected = stock(name, out.seeds[0], **WHOLE[name], output_type="pt")
    assert torch.equal(out.images, expected)
    assert not torch.equal(stock(name, out.seeds[0], output_type="pt"), expected)


@pytest.mark.parametrize("name", ["sd1-controlnet", "lumina2"])
def test_those_that_cannot_be_cut_say_so(name):
    with pytest.raises(InputError, match=r"cannot be cut: .* counts the .*, or give schedule=''"):
        search(name, **WHOLE[name], schedule="0:0.5")


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
@pytest.mark.parametrize("listed", [False, True])
def test_those_that_can_are_cut_at_every_step(name, listed):
    """Skip-layer guidance goes by shares of the number of steps, ``denoising_end`` by the timestep."""
    if listed and name == "sdxl":
        pytest.skip("its Euler scheduler takes timesteps, which leave the shares alone")
    pipe, options = shared_family(name), dict(WHOLE[name])
    if listed:
        options["sigmas"] = [1.0, 0.8, 0.5, 0.3, 0.1]
    conditioning, denoising = parts(pipe, name)
    denoising = type(denoising)(**{**vars(denoising), "extra": {**denoising.extra, **options}})
    calls = plan_of(pipe, STEPS, denoising.size, denoising.extra).calls
    alive = [Candidate(0, 0, generators([5])[0])]
    for start, stop in itertools.pairwise(range(calls + 1)):
        alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
    assert torch.equal(alive[0].latents, stock(name, 5, **options, output_type="latent"))
    assert calls < STEPS or name == "sd3"


@pytest.mark.parametrize("schedule", ["0:0.5", "0:0.5+1"])
def test_a_search_that_ends_early_scores_estimates_and_hands_on_the_noisy_latents(schedule):
    """For a refiner, which goes on at ``denoising_start``."""
    out = search("sdxl", denoising_end=0.6, schedule=schedule, output_type="latent")
    assert torch.equal(out.images, stock("sdxl", out.seeds[0], denoising_end=0.6, output_type="latent"))
    estimate = out.trace[-1]
    noisy = stock("sdxl", out.seeds[0], denoising_end=0.6, output_type="pt")
    assert estimate.step < STEPS - 1
    assert estimate.scores[0] != pytest.approx(float(brightness(noisy, [])))


@pytest.mark.parametrize("output_type", ["latent", "pil"])
def test_a_stopped_call_of_one_candidate_returns_what_the_stock_call_does(output_type):
    def stop(pipe: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = step == 1
        return values

    options: dict[str, Any] = {"num_inference_steps": 4, "callback_on_step_end": stop, "output_type": output_type}
    expected = tiny_pipeline()("a dog", **options, generator=generators([5])[0]).images
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    out = pipe("a dog", **options, generator=generators([5])[0], num_candidates=1)
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(expected[0]))
    assert (out.interrupted, out.ledger.calls, out.seeds) == (True, 2, [5])
    assert np.isnan(out.rewards[0])


def test_a_size_is_rounded_where_the_stock_pipeline_rounds(caplog):
    size = {"height": 36, "width": 43}
    with caplog.at_level(logging.WARNING):
        out = search("flux", **size, num_candidates=2)
    [warning] = {record.message for record in caplog.records if "resized accordingly" in record.message}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        [expected] = stock("flux", out.seeds[0], **size)
    assert isinstance(expected, Image)
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(expected))
    assert warning in caplog.text


def test_one_candidate_may_have_noise_without_a_seed_and_says_so():
    """SD3's loop hands its scheduler no generator: the stock image depends on torch's own."""
    pipe = family_pipeline("sd3")
    pipe.scheduler = DPMSolverMultistepScheduler(**FLOW_SIGMAS, algorithm_type="sde-dpmsolver++")
    images, seeds = [], []
    for called in (pipe, TTSnapPipeline.from_pipe(pipe, reward=brightness)):
        ours = {} if called is pipe else {"num_candidates": 1}
        torch.manual_seed(3)
        out = called("a dog", **call_options("sd3"), generator=generators([5])[0], **ours)
        images.append(np.asarray(out.images[0]))
        seeds.append(getattr(out, "seeds", None))
    assert np.array_equal(*images)
    assert seeds == [None, [None]]


def test_candidates_run_alone_where_the_stock_pipeline_mixes_the_rows_of_a_batch():
    sizes = {"negative_original_size": (16, 16), "negative_target_size": (512, 512)}
    out = search("sdxl", **sizes, schedule="0:0.5", micro_batch=None, output_type="pt")
    assert torch.equal(out.images, stock("sdxl", out.seeds[0], **sizes, output_type="pt"))
    with pytest.raises(InputError, match="mixes up negative_original_size and .* give micro_batch=1"):
        search("sdxl", **sizes, micro_batch=2)


@pytest.mark.parametrize("name", ["flux-controlnet", "flux-controlnet-img2img", "flux-controlnet-inpaint"])
def test_a_flux_controlnet_for_a_part_of_the_steps_works_whole_alone(name):
    built, options = edit_pipeline(name), {**EDITS[name].options, "control_guidance_end": 0.5, "output_type": "pt"}
    pipe, options = TTSnapPipeline.from_pipe(built, reward=brightness), {**options, "num_inference_steps": 4}
    whole = pipe("a dog", **options, seeds=[3], schedule="", micro_batch=1)
    assert torch.equal(whole.images, built("a dog", **options, generator=generators([3])[0]).images)
    with pytest.raises(InputError, match="cannot be cut: a ControlNet that works for a part"):
        pipe("a dog", **options, seeds=[3], schedule="1:1.0")


def test_sana_without_its_instruction():
    out = search("sana", complex_human_instruction=None, output_type="pt")
    assert torch.equal(out.images, stock("sana", out.seeds[0], complex_human_instruction=None, output_type="pt"))
    assert not torch.equal(out.images, search("sana", seeds=out.seeds, output_type="pt").images)


@pytest.mark.parametrize("name", sorted(FAMILY_ROWS))
def test_the_size_of_a_call_without_one_is_the_stock_pipelines(name, monkeypatch):
    """Read off its latents, before anything is denoised."""
    pipe, asked = shared_family(name), []

    class Sized(Exception):
        pass

    def prepared(*_given: Any, **_named: Any) -> Any:
        values = inspect.signature(type(pipe).prepare_latents).bind(pipe, *_given, **_named).arguments
        asked.append((values["height"], values["width"]))
        raise Sized

    monkeypatch.setattr(pipe, "prepare_latents", prepared)
    options = {key: value for key, value in call_options(name).items() if key not in {"height", "width"}}
    with pytest.raises(Sized):
        pipe(prompt="a dog", **options)
    assert asked == [tuple(default_size(pipe))]


def test_an_autoencoder_that_draws_noise_is_refused():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.vae = ConsistencyDecoderVAE.__new__(ConsistencyDecoderVAE)
    with pytest.raises(InputError, match="ConsistencyDecoderVAE draws noise while it decodes"):
        pipe("a dog", num_inference_steps=2)


def test_a_replaced_method_of_the_scheduler_is_refused_with_the_way_out():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)
    pipe.scheduler.step = functools.partial(pipe.scheduler.step)
    with pytest.raises(InputError, match=r"step of this DDIMScheduler was replaced .*del pipe\.scheduler\.step"):
        pipe("a dog", num_inference_steps=2)
    del pipe.scheduler.step
    assert pipe("a dog", num_inference_steps=2, seeds=[3]).seeds == [3]
