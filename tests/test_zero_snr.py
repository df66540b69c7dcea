"""Zero terminal SNR: levels are capped, looks at nothing are refused, and detectors read what the model does say."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from test_strategies import Brightness
from tiny import NOISE, tiny_pipeline

from diffkit.errors import InputError
from diffkit.parameterization import PURE_NOISE, is_pure_noise, is_silent
from diffkit.seeds import generators
from diffkit.step_plan import plan
from memorization.detection import make_detector
from memorization.generation import Sampling
from memorization.mitigation.nemo import differences
from memorization.text_embeddings import empty_text, encoded
from ttsnap import CollectSettings, PruningSchedule, TTSnapPipeline, collect
from ttsnap.noise_aware.curriculum import choose_steps
from ttsnap.search.registry import load_search
from ttsnap.search.strategies.fk_steering import FKSteering
from ttsnap.trajectories.dataset import Trajectories

KINDS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler,
         "unipc": UniPCMultistepScheduler}  # fmt: skip
OPTIONS = {"num_inference_steps": 6, "guidance_scale": 3.0}


def zero_snr(kind: str, prediction: str = "v_prediction", **options):
    pipe = tiny_pipeline()
    own = {"clip_sample": False, "set_alpha_to_one": False} if kind == "ddim" else {}
    pipe.scheduler = KINDS[kind](
        **NOISE, **own, rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=prediction, **options
    )
    return pipe


@pytest.mark.parametrize("kind", KINDS)
def test_a_look_after_the_first_step_and_finite_json(kind):
    stock = zero_snr(kind)
    pipe = TTSnapPipeline.from_pipe(stock, reward=Brightness())
    out = pipe("a dog", **OPTIONS, seeds=range(4), schedule="0:0.5,3:0.5", num_candidates=4, output_type="pt")
    assert out.trace[0].sigma == PURE_NOISE > out.trace[1].sigma
    assert None not in out.trace[0].scores
    json.dumps([look.to_dict() for look in out.trace], allow_nan=False)
    own = stock("a dog", **OPTIONS, generator=generators(out.seeds)[0], output_type="pt").images
    assert torch.allclose(out.images, own, atol=1 / 255)


@pytest.mark.parametrize("kind", ["euler", "dpm++", "unipc"])
def test_a_look_where_epsilon_says_nothing_is_refused_before_anything_runs(kind):
    stock, calls = zero_snr(kind, "epsilon"), []
    stock.unet.register_forward_hook(lambda *call: calls.append(call))
    pipe = TTSnapPipeline.from_pipe(stock, reward=Brightness())
    with pytest.raises(InputError, match="no estimate to look at after step 0.*look after step 1 or later"):
        pipe("a dog", **OPTIONS, schedule="0:0.5")
    assert len(calls) <= 2  # to count prices
    out = pipe("a dog", **OPTIONS, seeds=range(4), num_candidates=4, schedule="1:0.5")
    assert math.isfinite(out.rewards[0])


def test_strategies_look_only_where_there_is_something_to_see():
    pipe = TTSnapPipeline.from_pipe(zero_snr("euler", "epsilon"), reward=Brightness())
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "budget": "16x", "seed": 1}
    assert all(look.step for look in pipe("a dog", **options, search="halving").trace)
    with pytest.raises(InputError, match="after step 0"):
        pipe("a dog", **options, search=load_search("ttsp", PruningSchedule.parse("0:0.5")))
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="after step 0"):
        pipe("a dog", **options, search=FKSteering(looks=3))


@pytest.mark.parametrize(("options", "refused"), [({}, True), ({"clip_sample": True}, False)])
def test_division_by_zero_is_refused(options, refused):
    pipe = tiny_pipeline()
    config = {**NOISE, "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **options}
    pipe.scheduler = DDIMScheduler(**config)
    broken = pipe("a dog", **OPTIONS, output_type="pt").images.isnan().any()
    assert bool(broken) is refused  # what diffusers makes of it
    if refused:
        with pytest.raises(InputError, match=r"divides by zero and every image is NaN; set rescale_betas_zero_snr"):
            plan(pipe, 6)
    else:
        assert plan(pipe, 6).blind == (0,)
    pipe.scheduler = DDIMScheduler(**{**config, "timestep_spacing": "leading"})
    assert plan(pipe, 6).blind == ()


def test_recordings_keep_the_steps_that_have_an_estimate(tmp_path):
    pipe, settings = zero_snr("euler", "epsilon"), CollectSettings(candidates=2, num_inference_steps=4, micro_batch=2)
    made = collect(pipe, ["a dog"], {"bright": Brightness()}, settings, out=tmp_path / "run")
    assert made.steps == (1, 2, 3)
    with pytest.raises(InputError, match="no estimate to look at after step 0"):
        collect(pipe, ["a dog"], {"b": Brightness()}, replace(settings, record=(0, 2)), out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_first_step_of_a_recording_can_be_trained_on_also_one_of_version_0_1_0(tmp_path):
    settings = CollectSettings(candidates=2, num_inference_steps=3, micro_batch=2)
    made = collect(zero_snr("ddim"), ["a dog"], {"bright": Brightness()}, settings, out=tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["provenance"]["sigmas"][0] == PURE_NOISE
    record["provenance"]["sigmas"][0] = None  # as it was written
    (tmp_path / "run.json").write_text(json.dumps(record))
    again = Trajectories.open(tmp_path)
    assert again.sigmas == made.sigmas
    assert choose_steps(again, None) == [1, 0]


def output_difference(pipe, caption: str, seed: int, steps: int) -> torch.Tensor:
    """Of the denoiser's outputs with and without the caption at the first step, by diffusers alone."""
    pipe.scheduler.set_timesteps(steps)
    noise = torch.randn((1, 4, 16, 16), generator=generators([seed])[0])
    rows = [pipe.encode_prompt(text, "cpu", 1, False)[0] for text in (caption, "")]
    first, second = (pipe.unet(noise, pipe.scheduler.timesteps[0], encoder_hidden_states=row)[0] for row in rows)
    return first - second


@pytest.mark.parametrize("kind", ["ddim", "euler"])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@torch.no_grad()
def test_detectors_read_the_output_where_the_noise_says_nothing(kind, prediction):
    pipe, sampling = zero_snr(kind, prediction), Sampling(4, 3.0, 2)
    pipe.scheduler.set_timesteps(4)
    assert is_pure_noise(pipe.scheduler, pipe.scheduler.timesteps[0])
    assert is_silent(pipe.scheduler, pipe.scheduler.timesteps[0])
    captions = ["a dog", "a cat at a dog"]
    rows, negative = encoded(pipe, captions), empty_text(pipe)
    expected = torch.stack([output_difference(pipe, text, 3, 4).norm() for text in captions])
    if not (kind == "euler" and prediction == "sample"):  # which diffusers has not written
        magnitude = make_detector("noise_magnitude:steps=1").scores(pipe, rows, negative, [3, 3], sampling=sampling)
        assert magnitude == pytest.approx(expected, rel=1e-2)
    for name in ("sharpness", "anisotropy"):
        scores = make_detector(name).scores(pipe, rows, negative, [3, 3], sampling=sampling)
        assert scores.isfinite().all()
        assert scores[0] != scores[1]
        assert (scores.abs() > 1e-4).all()


def test_nemo_compares_estimates_where_the_noise_says_nothing():
    pipe = zero_snr("ddim")
    maps = differences(pipe, encoded(pipe, ["a dog"]), [1, 2], steps=4)
    assert (maps.flatten(1).std(1) > 1e-3).all()
