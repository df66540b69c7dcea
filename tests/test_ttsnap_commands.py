"""`diffkit ttsnap generate`: images, record, resuming, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline, tiny_vae
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward
from diffkit.seeds import candidate_seed, generators

UNSCORABLE = {"unscorable"}


@REWARDS.register("test-brightness")
def brightness():
    def reward(images, prompts):
        return [float("nan") if prompt in UNSCORABLE else float(image.mean()) for image, prompt in zip(images, prompts, strict=True)]  # fmt: skip  # noqa: E501

    return as_reward(reward)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


def command(folder, out, *more, prompts=("a dog", "cat")):
    fixed = ["--model", str(folder), "--reward", "test-brightness", "--steps", "5", "--device", "cpu", "--seed", "7"]
    return CliRunner().invoke(app, ["ttsnap", "generate", *prompts, *fixed, "--out", str(out), *more])


def test_winners_are_saved_with_what_makes_them_again(folder, tmp_path):
    more = ["--candidates", "6", "--schedule", "1:0.5", "--winners", "2", "--micro-batch", "1", "--format", "json"]
    result = command(folder, tmp_path / "run", *more)
    assert result.exit_code == 0, result.output
    items = json.loads(result.stdout)
    assert [item["prompt"] for item in items] == ["a dog", "cat"]
    seeds = {candidate_seed(7, 1, index) for index in range(6)}
    winner = items[1]["winners"][0]
    assert winner["seed"] in seeds
    saved = Image.open(tmp_path / "run" / winner["image"])
    stock = tiny_pipeline()("cat", num_inference_steps=5, guidance_scale=3.0, generator=generators([winner["seed"]])[0])
    assert np.array_equal(np.asarray(saved), np.asarray(stock.images[0]))
    assert items[1]["ledger"]["calls"] == 6 * 2 + 3 * 3
    assert Image.open(tmp_path / "run" / items[0]["scores"]).size[0] > 100
    assert Image.open(tmp_path / "run" / items[0]["looks"]).size[0] > 100
    again = command(folder, tmp_path / "run", *more)
    assert json.loads(again.stdout) == items
    other = command(folder, tmp_path / "run", *more, "--guidance", "2")
    assert other.exit_code == 2
    assert "guidance" in other.stderr


def test_a_prompt_whose_winner_is_good_enough_costs_no_more(folder, tmp_path):
    def searched(enough):
        more = ["--budget", "8x", "--enough", enough, "--rounds", "2", "--schedule", "", "--format", "json"]
        result = command(folder, tmp_path / enough, *more)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    every = searched("1")  # a white image
    scores = sorted(item["winners"][0]["reward"] for item in every)
    assert [item["candidates"] for item in every] == [8, 8]
    assert [item["candidates"] for item in searched(str(scores[0] - 0.5))] == [4, 4]
    for item in every:
        finals = [score for look in item["trace"] for score in look["scores"]]
        assert len(finals) == 8
        assert item["winners"][0]["reward"] == max(finals)
        assert Image.open(tmp_path / "1" / item["scores"]).size[0] > 100


def test_a_preview_decoder_is_only_for_looks(folder, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "decoder")
    more = ["--candidates", "4", "--schedule", "1:0.5", "--preview-vae", str(tmp_path / "decoder"), "--format", "json"]
    result = command(folder, tmp_path / "run", *more)
    assert result.exit_code == 0, result.output
    ledgers = [item["ledger"] for item in json.loads(result.stdout)]
    assert [(one["previewed"], one["decoded"]) for one in ledgers] == [(4, 2), (4, 2)]


def test_a_distilled_reward_is_described_by_its_card(tmp_path):
    more = ["--model", "lab", "--reward", "lab-noise-aware", "--candidates", "2", "--schedule", "1:0.5", "--steps", "3"]
    result = CliRunner().invoke(app, ["ttsnap", "generate", "a red circle on gray", *more, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    described = json.loads((tmp_path / "summary.json").read_text())["reward"]
    assert described["name"] == "lab-noise-aware"
    assert described["base"]["name"] == "lab"
    assert described["tau"]


def test_a_prompt_that_cannot_be_scored_leaves_the_others_alone(folder, tmp_path):
    result = command(folder, tmp_path / "run", "--candidates", "2", prompts=("unscorable", "cat"))
    assert result.exit_code == 3
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["failed"] == 1
    assert summary["reward"]["name"]
    assert "returned nan" in summary["items"][0]["error"]
    assert summary["items"][1]["error"] is None
    UNSCORABLE.clear()
    again = command(folder, tmp_path / "run", "--candidates", "2", "--format", "json", prompts=("unscorable", "cat"))
    UNSCORABLE.add("unscorable")
    assert again.exit_code == 0, again.output
    retried, untouched = json.loads(again.stdout)
    assert len(retried["winners"]) == 1
    assert untouched == summary["items"][1]


@pytest.mark.parametrize(
    ("more", "prompts", "sentence"),
    [
        (["--schedule", "9:0.5"], ("a",), "before its last one"),
        (["--budget", "4x", "--candidates", "3"], ("a",), "leave out --candidates"),
        (["--budget", "much"], ("a",), "Cannot read the budget"),
        (["--enough", "1"], ("a",), "say the most it may cost with --budget"),
        (["--enough", "nan", "--budget", "8x"], ("a",), "enough is a reward at which to stop"),
        (["--preview-vae", "./nothing"], ("a",), "preview decoder"),
        ([], (), "There is no prompt"),
    ],
)
def test_wrong_input_writes_nothing(folder, tmp_path, more, prompts, sentence):
    result = command(folder, tmp_path / "run", *more, prompts=prompts)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_dry_run_runs_nothing(folder, tmp_path):
    assert command(folder, tmp_path / "run", "--dry-run").exit_code == 0
    assert not (tmp_path / "run").exists()
