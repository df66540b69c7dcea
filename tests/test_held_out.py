"""Held-out rewards: they score the winners, and nothing else changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_copy_guard import bare, search, stock
from test_strategies import PROMPTS, Brightness

from diffkit.errors import InputError
from ttsnap import CompareSettings, compare
from ttsnap.evaluation.compare_report import summarise_searches, table_rows


class Contrast:
    """Deviation of the image; lower is better."""

    name, higher_is_better, range, flops_per_image = "contrast", False, (0.0, 1.0), None

    def score(self, images, prompts):
        return images.std((1, 2, 3))


def redness(images, prompts):
    scores = images[:, 0].mean((1, 2))
    return torch.where(scores > scores.median(), scores, torch.nan)


def test_winners_are_scored_and_nothing_else_changes():
    options = {"schedule": "2:0.5", "num_images_per_prompt": 2}
    without, out = search(**options), search(**options, held_out_rewards=[Contrast(), redness])
    assert without.held_out is None
    assert (out.seeds, out.rewards, out.ledger.cost) == (without.seeds, without.rewards, without.ledger.cost)
    assert out.ledger.flops == without.ledger.flops
    assert (out.images == without.images).all()
    assert [scores["contrast"] for scores in out.held_out] == [
        pytest.approx(float(stock()[seed].std()), abs=1e-4) for seed in out.seeds
    ]
    known = [np.isfinite(scores["redness"]) for scores in out.held_out]
    assert sorted(known) == [False, True]
    first, last = (look.to_dict() for look in out.trace)
    assert "held_out" not in {*first, *without.trace[-1].to_dict()}
    assert {name: set(scores) for name, scores in last["held_out"].items()} == {
        name: {str(index) for index in out.trace[-1].survivors} for name in ("contrast", "redness")
    }
    assert last["held_out"]["redness"][str(out.trace[-1].survivors[known.index(False)])] is None
    assert out.ledger.seconds["held_out"] > 0
    assert "held_out" not in without.ledger.seconds


@pytest.mark.parametrize(
    ("rewards", "message"),
    [(Brightness(), "'brightness' cannot be held out"), ([Contrast(), Contrast()], "different names, got contrast")],
)
def test_the_reward_itself_and_two_of_one_name_are_refused(rewards, message):
    with pytest.raises(InputError, match=message):
        search(held_out_rewards=rewards)


def test_a_comparison_has_the_paired_difference_of_the_held_out_reward(tmp_path):
    settings = CompareSettings("4x", num_inference_steps=4, group=2)
    result = compare(
        bare(), PROMPTS, "best-of-n,halving", settings, reward=Brightness(), held_out_rewards=Contrast(), out=tmp_path
    )
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    items = [line.get("item", line) for line in lines]
    scores = {(item["search"], item["index"]): item["held_out"]["contrast"] for item in items if "held_out" in item}
    gains = [scores["best-of-n", index] - scores["halving", index] for index in range(2)]  # lower is better
    first, second = (row["held_out"]["contrast"] for row in result.rows)
    assert first["gain"] is None
    assert second["gain"]["mean"] == pytest.approx(np.mean(gains))
    assert second["reward"] == pytest.approx(np.mean([scores["halving", index] for index in range(2)]))
    assert result.table()[0][1:5] == ["reward", "over best-of-n", "held out: contrast", "over best-of-n"]
    config = json.loads((tmp_path / "run.json").read_text())["config"]
    assert config["held_out"] == ["contrast"]


def test_a_comparison_without_held_out_rewards_is_as_before():
    item = {"search": "best-of-n", "index": 0, "prompt": "x", "error": None, "reward": 1.0, "judged": None,
            "candidates": 4, "cost": {"calls": 8}, "spent": 1.0, "limit": 2.0, "seconds": 0.5}  # fmt: skip
    [row] = rows = summarise_searches([item])
    assert "held_out" not in row
    assert len(table_rows(rows)[0]) == 10


def test_a_comparison_under_a_guard_drops_copies_for_every_search(tmp_path):
    from test_copy_guard import Light

    settings = CompareSettings("2x", num_inference_steps=2, group=1)
    [row] = compare(
        bare(), PROMPTS[:1], "best-of-n", settings, reward=Brightness(), copy_guard=Light(-1.0), out=tmp_path
    ).rows
    assert row["failed"] == 1
    assert json.loads((tmp_path / "run.json").read_text())["config"]["copy_guard"] == {"name": "light", "most": -1.0}
