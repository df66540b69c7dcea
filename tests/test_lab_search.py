"""What ships for the lab: a reward that knows noise, a learned schedule and recorded rewards, working together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffkit.loading import load_pipeline
from diffkit.prompts import read_prompts
from diffkit.rewards import load_reward
from diffkit.step_plan import plan
from ttsnap import TTSnapPipeline
from ttsnap.alignment import kendall
from ttsnap.assets import NAMES
from ttsnap.schedules.fitted_schedule import FittedSchedule
from ttsnap.trajectories.collect import CollectSettings, collect
from ttsnap.trajectories.dataset import steps_near
from ttsnap.trajectories.read import load_tensor

PROMPTS = {
    "lab": "a red circle left of a blue square on gray",
    "lab-trio": "a red circle left of a blue square above a green triangle on gray",
}


@pytest.mark.parametrize("model", NAMES)
def test_the_shipped_reward_and_schedule_work_at_once(model: str) -> None:
    pipe = TTSnapPipeline.from_pretrained(model, reward=f"{model}-noise-aware", schedule=model)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 20, "guidance_scale": 3.0, "budget": "2x", "seed": 7}
    out = pipe(PROMPTS[model], **options)
    assert isinstance(pipe.schedule, FittedSchedule)
    assert [look.step for look in out.trace] == [*pipe.schedule.resolve(20, equivalent=2.0).steps, 19]
    assert out.ledger.cost.at(out.ledger.flops) <= 2 * (20 * out.ledger.flops.call + out.ledger.flops.decode + 1e9)
    best_of_n = pipe(PROMPTS[model], **options, schedule="")
    assert [look.step for look in best_of_n.trace] == [19]
    other = TTSnapPipeline.from_pipe(pipe)
    assert other.schedule is pipe.schedule


@pytest.mark.parametrize("model", ["lab", "lab-trio"])
def test_the_recorded_rewards_show_what_distillation_gave(model: str) -> None:
    plain, aware = load_tensor(model, model), load_tensor(model, f"{model}-noise-aware")
    taus = {}
    for tensor in (plain, aware):
        taus[tensor.name] = np.nanmean([kendall(tensor.looks[:, :, step], tensor.final) for step in range(2, 9)])
    assert taus[aware.name] - taus[plain.name] >= 0.10


def test_taught_at_20_steps_it_ranks_better_than_the_plain_reward_at_12(tmp_path: Path) -> None:
    pipe = load_pipeline("lab")
    near = steps_near(plan(pipe, 12).sigmas, (-8.2, -6.5, -5.0, -3.6))
    rewards = {name: load_reward(name) for name in ("lab", "lab-noise-aware")}
    settings = CollectSettings(8, 12, 3.0, previews=False, record=near, seed=3)
    found = collect(pipe, read_prompts("lab:held-out", 3), rewards, settings, out=tmp_path / "run")
    taus = {}
    for name in rewards:
        tensor = found.reward_tensor(name)
        taus[name] = np.nanmean([kendall(tensor.looks[:, :, step], tensor.final) for step in near])
    assert taus["lab-noise-aware"] > taus["lab"]
