"""Lookahead in searches: few steps, previews, schedules of fit, and what recorded rewards cannot replay."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline, tiny_vae
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.seeds import generators
from ttsnap import PruningSchedule, Rounds, TTSnapPipeline, load_schedule
from ttsnap.evaluation.accounting import fractional_cost
from ttsnap.evaluation.contenders import read_contenders
from ttsnap.evaluation.replay import replay
from ttsnap.plots.search import contact_sheet, look_figure, score_figure
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.fitted_schedule import Entry, FittedSchedule

PROMPT = "a dog"


@functools.cache
def pipeline(scheduler: str = "euler") -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(
        tiny_pipeline(scheduler), reward=lambda images, prompts: images.mean((1, 2, 3)) * 10
    )


@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize(("steps", "looks"), [(1, [0]), (2, [1]), (3, [2]), (4, [0, 3]), (8, [0, 7])])
def test_a_plain_reward_and_few_steps(steps, looks, guidance):
    """Best-of-N with previews where a draft would cost as much as an image."""
    options = {"num_inference_steps": steps, "guidance_scale": guidance}
    out = pipeline()(PROMPT, **options, search="lookahead", budget="6x", seed=7, micro_batch=1, previews=True)
    assert [look.step for look in out.trace] == looks
    assert [len(look.previews) for look in out.trace] == [len(look.candidates) for look in out.trace]
    assert len(out.trace[0].candidates) >= 3
    stock = tiny_pipeline("euler")(PROMPT, **options, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(stock))


def test_rounds_may_look_ahead_by_a_plain_reward():
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "budget": "6x", "seed": 7}
    out = pipeline()(PROMPT, **options, search=Rounds(100.0, rounds=2, schedule="0:0.5+1"))
    assert [(look.step, look.lookahead) for look in out.trace] == [(0, 1), (3, 0)] * 2


def test_a_budget_in_seconds_is_kept_by_lookahead_and_refused_by_searches_that_count():
    options = {"num_inference_steps": 6, "guidance_scale": 1.0, "budget": "2s", "seed": 7}
    out = pipeline()(PROMPT, **options, search="lookahead")
    assert [(look.step, look.lookahead) for look in out.trace] == [(0, 2), (5, 0)]
    assert out.ledger.budget["unit"] == "s"
    with pytest.raises(InputError, match="'halving' is planned in counted cost"):
        pipeline()(PROMPT, **options, search="halving")


def test_more_calls_than_are_left_are_refused_before_anything_runs():
    with pytest.raises(InputError, match="ahead by 3 calls after step 1, but only 2 of the 4 are left there"):
        pipeline()(PROMPT, num_inference_steps=4, num_candidates=2, schedule="1:0.5+3")


def test_previews_are_of_the_images_ahead_and_by_the_preview_decoder():
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "seeds": [3, 4], "previews": True, "micro_batch": 2}
    seen = []
    for vae in (None, tiny_vae()):
        out = pipeline("dpm++")(PROMPT, **options, schedule="0:1.0+3", preview_vae=vae)
        seen.append([np.asarray(look.previews[0]).astype(int) for look in out.trace])
        assert out.ledger.previewed == (0 if vae is None else 2)
    for early, last in seen[:1]:  # all calls that are left are the denoising itself by this solver
        assert np.abs(early - last).max() <= 1
    assert np.abs(seen[1][0] - seen[0][0]).max() > 1
    for figure in (contact_sheet(out.trace), score_figure(out.trace, title="t")):
        assert figure.width > 0
    assert look_figure(out.trace).axes[0].get_ylabel() == "1 + 3 calls\n2 → 2"


def test_fitted_schedules_may_look_ahead(tmp_path):
    entries = (
        Entry(40.0, 2.0, 4, PruningSchedule.parse("2:0.5")),
        Entry(160.0, 8.0, 20, PruningSchedule.parse("1:0.1+3,6:0.5")),
    )
    fitted = FittedSchedule((2,), (0.5,), entries, calls=20)
    assert fitted.looks_ahead
    (tmp_path / "f.json").write_text(fitted.to_json())
    again = load_schedule(tmp_path / "f.json")
    assert again.to_json() == fitted.to_json()
    assert str(again.resolve(20, equivalent=9.0)) == "1:0.1+3,6:0.5"
    assert str(again.resolve(4, equivalent=9.0)) == "0:0.05+3"  # both looks fall together
    assert str(again.resolve(10, equivalent=9.0)) == "0:0.1+3,3:0.5"
    ahead = FittedSchedule((1,), (0.1,), calls=20, lookahead=(3,))
    assert str(ahead.resolve(3, candidates=4)) == "0:0.1+2"
    assert str(ahead.at_budget(3.0)) == "1:0.1+3"


def test_rewards_recorded_without_lookahead_cannot_replay_it():
    looks = np.random.default_rng(0).normal(size=(3, 6, 5))
    tensor = RewardTensor(looks, looks[:, :, -1], "r")
    with pytest.raises(InputError, match="looks ahead by 2 calls after step 1, but r was recorded without lookahead"):
        replay(tensor, PruningSchedule.parse("1:0.5+2"), 4)
    arguments = ["ttsnap", "simulate", "lab", "--key", "lab", "--schedule", "1:0.5+2", "--resamples", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "looks ahead" in result.stderr
    torch.testing.assert_close(
        fractional_cost(PruningSchedule.parse("1:0.5+2"), 5, Prices(10.0, 1.0, 1.0)), 42.0 + 0.5 * 32
    )


def test_a_comparison_gives_lookahead_its_own_schedule():
    plain, ahead = PruningSchedule.parse("2:0.4"), PruningSchedule.parse("1:0.1+2")
    first, second = read_contenders("ttsp,lookahead", schedules={"": plain})
    assert (first.strategy.schedule, second.strategy.schedule) == (plain, None)
    [third] = read_contenders("lookahead", schedules={"": plain, "lookahead": ahead})
    assert third.strategy.schedule == ahead
