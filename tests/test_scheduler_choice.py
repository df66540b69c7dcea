"""``--scheduler``: the short names give diffusers' own samplers; what does not exist or fit is refused."""

from __future__ import annotations

import json

import pytest
from diffusers import (
    DDIMParallelScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny import NOISE, tiny_pipeline
from tiny_families import family_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.loading import load_pipeline
from diffkit.scheduler_choice import SHORT_NAMES, put_scheduler, read_scheduler
from diffkit.solvers import solver_of
from ttsnap.pipeline import TTSnapPipeline


@pytest.mark.parametrize(
    ("text", "kind", "settings"),
    [
        ("euler-a", EulerAncestralDiscreteScheduler, {}),
        ("DPMSolverMultistepScheduler", DPMSolverMultistepScheduler, {}),
        ("dpmpp-2m:solver_order=3,final_sigmas_type=sigma_min", DPMSolverMultistepScheduler,
         {"algorithm_type": "dpmsolver++", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
        ("unipc: solver_p=none, lower_order_final=false", UniPCMultistepScheduler,
         {"solver_p": None, "lower_order_final": False}),
    ],
)  # fmt: skip
def test_a_scheduler_takes_the_models_noise_and_the_given_settings(text, kind, settings):
    pipe = tiny_pipeline()
    own = pipe.scheduler.config
    put_scheduler(pipe, text)
    assert type(pipe.scheduler) is kind
    wanted = kind.from_config(own, **settings).config
    assert dict(pipe.scheduler.config) == dict(wanted)
    assert pipe.scheduler.config.beta_start == own.beta_start


def test_all_short_names_are_classes_of_diffusers():
    for name, (class_name, settings) in SHORT_NAMES.items():
        choice = read_scheduler(name)
        assert (choice.kind.__name__, choice.settings) == (class_name, settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("eular", "Unknown scheduler 'eular'.*euler"),
        ("UNet2DConditionModel", "Unknown scheduler"),
        ("ddim:eta=1", "setting of DDIMScheduler 'eta'.*clip_sample"),
        ("ddim:clip_sample", "Expected settings of --scheduler such as DDIMScheduler:"),
        ("flow-euler", "FlowMatchEulerDiscreteScheduler does not fit .* DDIMScheduler; choose one of"),
        ("ddim:beta_schedule=flat", "refuses the settings"),
        ("dpmpp-2m:algorithm_type=new", "refuses the settings"),
    ],
)
def test_refusals(text, words):
    with pytest.raises(InputError, match=words):
        put_scheduler(tiny_pipeline(), text)


def test_a_flow_model_keeps_a_flow_scheduler():
    pipe = family_pipeline("flux")
    with pytest.raises(InputError, match="does not fit this FluxPipeline"):
        put_scheduler(pipe, "ddim")
    put_scheduler(pipe, "flow-euler:shift=2")
    assert pipe.scheduler.config.shift == 2


def test_schedulers_of_a_kind_replace_each_other():
    """diffusers names no compatible ones for LCM, TCD and flows."""
    pipe = tiny_pipeline()
    for name, kind in (("lcm", "LCMScheduler"), ("tcd", "TCDScheduler"), ("dpmpp-2s", "DPMSolverSinglestepScheduler")):
        put_scheduler(pipe, name)
        assert type(pipe.scheduler).__name__ == kind
        assert pipe.scheduler.config.beta_start == NOISE["beta_start"]
    flow = family_pipeline("sd3")
    put_scheduler(flow, "flow-heun")
    assert (type(flow.scheduler).__name__, flow.scheduler.config.shift) == ("FlowMatchHeunDiscreteScheduler", 3.0)
    with pytest.raises(InputError, match="choose one of: FlowMatch"):
        put_scheduler(flow, "lcm")


def test_a_scheduler_that_cannot_be_suspended_names_the_option():
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMParallelScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(InputError, match="--scheduler ddim"):
        solver_of(pipe.scheduler)


def test_it_is_part_of_a_runs_configuration(tmp_path):
    def generate(*options: str):
        line = ["ttsnap", "generate", "a red circle on gray", "--candidates", "1", "--steps", "2", "--out", tmp_path]
        return CliRunner().invoke(app, [*map(str, line), *options])

    assert generate("--scheduler", "euler").exit_code == 0
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert config["scheduler"] == "euler"
    refused = generate()
    assert refused.exit_code == 2
    assert "scheduler" in refused.output
    assert generate("--scheduler", "euler").exit_code == 0


def test_it_goes_along_into_a_search_pipeline():
    from diffkit.noted_options import options_of

    pipe = TTSnapPipeline.from_pipe(load_pipeline("lab", device="cpu", scheduler="euler"), reward="lab")
    assert options_of(pipe) == {"scheduler": "euler"}
    assert type(pipe.scheduler).__name__ == "EulerDiscreteScheduler"
