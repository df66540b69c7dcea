"""Rewards: any callable works, and what comes back is checked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffkit.errors import InputError
from diffkit.rewards import REWARDS, load_reward
from diffkit.rewards.base import Reward, score_checked

IMAGES, PROMPTS = torch.rand(3, 3, 8, 8), ["a", "b", "c"]


@pytest.mark.parametrize(
    "returns", [[1, 2, 3], (1.0, 2.0, 3.0), torch.tensor([1, 2, 3]), torch.tensor([1.0, 2, 3]).double().numpy()]
)
def test_a_callable_is_a_reward(returns):
    reward = load_reward(lambda images, prompts: returns)
    assert isinstance(reward, Reward)
    values, reasons = score_checked(reward, IMAGES, PROMPTS)
    assert values.tolist() == [1.0, 2.0, 3.0]
    assert values.dtype == torch.float32
    assert reasons == [None] * 3


def test_a_callable_says_what_it_knows():
    def darkness(images, prompts):
        return images.mean((1, 2, 3))

    darkness.higher_is_better, darkness.flops_per_image = False, 5
    reward = load_reward(darkness)
    assert (reward.name, reward.higher_is_better, reward.flops_per_image) == ("darkness", False, 5.0)
    assert load_reward(reward) is reward


def test_nan_and_infinity_are_the_items_errors():
    reward = load_reward(lambda images, prompts: [1.0, float("nan"), float("inf")])
    values, reasons = score_checked(reward, IMAGES, PROMPTS)
    assert torch.isnan(values).tolist() == [False, True, True]
    assert [reason is None for reason in reasons] == [True, False, False]
    assert "nan" in reasons[1]


@pytest.mark.parametrize(
    "returns", [[0.5, None, 1], (0.5, None, 1), np.array([0.5, None, 1]), np.array([0.5, math.nan, 1])]
)
def test_a_missing_score_is_the_items_error(returns):
    values, reasons = score_checked(load_reward(lambda images, prompts: returns), IMAGES, PROMPTS)
    assert values.isnan().tolist() == [False, True, False]
    assert values[[0, 2]].tolist() == [0.5, 1.0]
    assert reasons == [None, "the reward '<lambda>' returned nan", None]


def test_an_array_of_any_stride_is_taken_and_not_changed():
    scores = np.arange(6.0)
    scores.setflags(write=False)
    reward = load_reward(lambda images, prompts: scores[::-2])
    assert score_checked(reward, IMAGES, PROMPTS).values.tolist() == [5.0, 3.0, 1.0]


def test_a_class_is_no_reward():
    class Score:
        name, higher_is_better, range, flops_per_image = "score", True, (0.0, 1.0), None

        def score(self, images, prompts):
            return torch.zeros(len(images))

    class Call:
        def __call__(self, images, prompts):
            return torch.zeros(len(images))

    for given in (Score, Call):
        with pytest.raises(InputError, match=rf"is the class {given.__name__}; give an instance, {given.__name__}\("):
            load_reward(given)
        assert score_checked(load_reward(given()), IMAGES, PROMPTS).values.tolist() == [0.0] * 3

    class Static(Score):
        score = staticmethod(lambda images, prompts: torch.ones(len(images)))

    assert score_checked(load_reward(Static), IMAGES, PROMPTS).values.tolist() == [1.0] * 3


@pytest.mark.parametrize("returns", [1.0, [1.0], [[1.0, 2.0, 3.0]], "good", None])
def test_wrong_returns_are_refused(returns):
    with pytest.raises(InputError, match="one score for each of 3 images|no numbers"):
        score_checked(load_reward(lambda images, prompts: returns), IMAGES, PROMPTS)


def test_refusals():
    with pytest.raises(InputError, match="2 prompts for 3 images"):
        score_checked(load_reward(lambda images, prompts: [1] * 3), IMAGES, ["a", "b"])
    with pytest.raises(InputError, match="Unknown reward"):
        load_reward("nobody")
    with pytest.raises(InputError, match="Expected the name"):
        load_reward(3)

    class Half:
        def score(self, images, prompts):
            return [0] * len(images)

    with pytest.raises(InputError, match="lacks name, higher_is_better"):
        load_reward(Half())
    assert "lab" in REWARDS.names()
