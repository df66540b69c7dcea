"""`diffkit ttsnap generate` by rounds and by neighbours: small budgets, and prompts with too few scored images."""

from __future__ import annotations

import json
import math

import pytest
from test_ttsnap_commands import command, folder

from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward

__all__ = ["folder"]  # a fixture


@REWARDS.register("test-rarely-scored")
def rarely_scored():
    """Scores every image of some prompts, and of others only the first one after those that are tried."""
    seen = {}

    def reward(images, prompts):
        scores = []
        for image, prompt in zip(images, prompts, strict=True):
            seen[prompt] = seen.get(prompt, 0) + 1
            scores.append(float(image.mean()) if "dog" not in prompt or seen[prompt] <= 3 else math.nan)
        return scores

    return as_reward(reward)


@pytest.mark.parametrize("search", [("--search", "random"), ("--search", "zero-order"), ("--enough", "9")])
def test_a_prompt_with_fewer_scored_images_than_asked_for_is_an_error_of_its_own(folder, tmp_path, search):
    more = ["--reward", "test-rarely-scored", "--winners", "2", "--budget", "4x", "--schedule", "", "--format", "json"]
    result = command(folder, tmp_path / "run", *more, *search)
    assert result.exit_code == 3, result.output
    first, second = json.loads((tmp_path / "run" / "summary.json").read_text())["items"]
    assert "1 of 4 candidates" in first["error"]
    assert first["winners"] == []
    assert second["error"] is None
    assert len(second["winners"]) == 2


def test_a_budget_that_does_not_pay_for_all_rounds_is_spent_on_fewer(folder, tmp_path):
    more = ["--enough", "9", "--budget", "3x", "--schedule", "", "--format", "json"]
    result = command(folder, tmp_path / "run", *more, prompts=("cat",))
    assert result.exit_code == 0, result.output
    [item] = json.loads(result.stdout)
    assert [len(look["candidates"]) for look in item["trace"]] == [1, 1, 1]
    assert item["ledger"]["budget"]["unspent"] == 0
