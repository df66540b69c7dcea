"""Several rewards as one: in units of their spreads, or compared within a prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, zscore

from diffkit.errors import InputError
from diffkit.rewards import REWARDS, load_reward
from diffkit.rewards.base import Reward
from diffkit.rewards.ensemble import Ensemble

RED, DARK = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2]), torch.tensor([0.2, 0.1, 0.6, 0.6, 0.3, 0.5])
IMAGES = torch.stack([RED, DARK, torch.zeros(6)], 1)[..., None, None].expand(6, 3, 4, 4)
PROMPTS = ["one", "two", "one", "two", "two", "one"]


@REWARDS.register("test-red")
def _red():
    def red(images, prompts):
        return images[:, 0].mean((1, 2)) * 1000

    red.flops_per_image = 2.0
    return red


@REWARDS.register("test-dark")
def _dark():
    def dark(images, prompts):
        return images[:, 1].mean((1, 2))

    dark.higher_is_better, dark.flops_per_image = False, 3.0
    return dark


def test_with_spreads_it_is_a_reward_whose_rows_stand_alone():
    reward = load_reward("ensemble:test-red=200+test-dark=0.5")
    assert isinstance(reward, Reward)
    assert (reward.name, reward.flops_per_image) == ("ensemble:red=200+dark=0.5", 5.0)
    expected = RED * 1000 / 200 - DARK / 0.5
    torch.testing.assert_close(reward.score(IMAGES, PROMPTS), expected)
    torch.testing.assert_close(reward.score(IMAGES[2:3], PROMPTS[2:3]), expected[2:3])


def test_utilities_compare_the_images_of_a_prompt():
    found = {rule: Ensemble([_red(), _dark()]).utilities(IMAGES, PROMPTS, rule).numpy() for rule in ("rank", "zscore")}
    for prompt in ("one", "two"):
        rows = [row for row, other in enumerate(PROMPTS) if other == prompt]
        columns = [RED[rows].numpy(), -DARK[rows].numpy()]
        np.testing.assert_allclose(found["rank"][rows], sum(rankdata(column) for column in columns))
        np.testing.assert_allclose(found["zscore"][rows], sum(zscore(column) for column in columns), rtol=1e-5)


def test_pareto_puts_the_undominated_first():
    fronts = Ensemble([_red(), _dark()]).utilities(IMAGES, ["all"] * 6, "pareto")
    assert fronts.argmax() == 1  # the reddest and the least dark
    assert fronts.argsort()[0] in (2, 3)


def test_what_cannot_be_scored_is_never_chosen():
    def broken(images, prompts):
        return torch.where(images[:, 0, 0, 0] > 0.8, torch.nan, images[:, 0, 0, 0])

    both = Ensemble([_red(), broken], [1, 1])
    assert torch.isnan(both.score(IMAGES, PROMPTS)).tolist() == [False, True, False, False, False, False]
    for rule in ("rank", "zscore", "pareto"):
        assert both.utilities(IMAGES, PROMPTS, rule)[1] == -math.inf


def test_refusals():
    with pytest.raises(InputError, match="has no spreads"):
        Ensemble([_red(), _dark()]).score(IMAGES, PROMPTS)
    with pytest.raises(InputError, match="two or more rewards of different names"):
        Ensemble([_red(), _red()], [1, 1])
    with pytest.raises(InputError, match="a positive spread for each"):
        Ensemble([_red(), _dark()], [1, 0])
    with pytest.raises(InputError, match="a rule among rank, zscore, pareto"):
        Ensemble([_red(), _dark()]).utilities(IMAGES, PROMPTS, "sum")
    for text in ("ensemble", "ensemble:test-red+test-dark", "ensemble:test-red=much+test-dark=1"):
        with pytest.raises(InputError, match=r"rewards with their spreads, such as ensemble:pick-score=1\+hps"):
            load_reward(text)
    with pytest.raises(InputError, match="Unknown reward 'nobody'"):
        load_reward("ensemble:nobody=1+test-red=1")


def test_licences_of_all():
    red = load_reward(_red())
    red.licence = "MIT"
    assert Ensemble([red, _dark()]).licence == "red: MIT; dark: not stated"
