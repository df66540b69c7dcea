"""`diffkit ttsnap collect`: what is written, resuming, what is refused."""

from __future__ import annotations

import json
import math

import pytest
from command_lines import changed_line
from tiny import tiny_pipeline, tiny_vae
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward
from ttsnap.trajectories.dataset import Trajectories
from ttsnap.trajectories.read import load_tensor


@REWARDS.register("collect-red")
def red():
    return as_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)))


MOODS = {"cat"}


@REWARDS.register("collect-moody")
def moody():
    def reward(images, prompts):
        return [math.nan if prompt in MOODS else 1.0 for prompt in prompts]

    return as_reward(reward)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def run(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\ncat\ndog\n")

    def command(*more):
        files = ["--prompts", tmp_path / "prompts.txt", "--model", model, "--out", tmp_path / "run"]
        fixed = ["--rewards", "collect-red", "--steps", 4, "--candidates", 3, "--micro-batch", 3, "--seed", 7]
        line = changed_line([*map(str, [*files, *fixed, "--device", "cpu"])], *map(str, more))
        return CliRunner().invoke(app, ["ttsnap", "collect", *line])

    return command


def test_trajectories_are_recorded_and_the_same_command_goes_on(run, tmp_path):
    first = run("--format", "json")
    assert first.exit_code == 0, first.output
    summary = json.loads(first.stdout)
    found = Trajectories.open(tmp_path / "run")
    assert found.prompts == ("a dog", "cat", "dog")
    assert summary["prompts"] == 3
    assert summary["steps"] == [0, 1, 2, 3]
    assert summary["sigmas"] == list(found.sigmas)
    taus = summary["rewards"]["collect-red"]["tau"]
    assert len(taus) == 4
    assert all(-1 <= tau <= 1 for tau in taus)
    assert summary["rewards"]["collect-red"]["prices"]["FLOP"]["call"] > 0
    assert load_tensor(tmp_path / "run").final.shape == (3, 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").iterdir()}
    again = run()
    assert again.exit_code == 0
    assert "log-SNR" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards").iterdir()} == before
    other = run("--guidance", 2)
    assert other.exit_code == 2
    assert "guidance_scale is 3.0 there and 2.0 here" in " ".join(other.stderr.split())


@pytest.mark.parametrize(
    ("text", "steps"),
    [("all", (0, 1, 2, 3)), ("3,1", (1, 3)), ("every 2", (1, 3)), ("every 3", (0, 3)), ("log-snr -99,99", (0, 3))],
)
def test_steps_to_record(run, tmp_path, text, steps):
    assert run("--record", text, "--limit", 1, "--no-previews").exit_code == 0
    found = Trajectories.open(tmp_path / "run")
    assert found.steps == steps
    assert not found[0].has_previews
    assert found.prompts == ("a dog",)


def test_missing_scores_are_counted_and_exit_with_3(run, tmp_path):
    result = run("--rewards", "collect-moody,collect-red", "--format", "json", "--record", "1")
    assert result.exit_code == 3
    rewards = json.loads(result.stdout)["rewards"]
    assert rewards["collect-moody"]["unscored"] == 2 * 3
    assert rewards["collect-moody"]["reason"] == "the reward 'reward' returned nan"
    assert rewards["collect-moody"]["tau"] == [None]
    assert rewards["collect-red"]["unscored"] == 0
    assert load_tensor(tmp_path / "run", "collect-red").recorded == [1]
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert run("--rewards", "collect-moody,collect-red", "--format", "json", "--record", "1").exit_code == 3
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before  # tried again, and in error again
    MOODS.clear()
    again = run("--rewards", "collect-moody,collect-red", "--format", "json", "--record", "1")
    MOODS.add("cat")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rewards"]["collect-moody"]["unscored"] == 0


def test_another_preview_decoder_is_another_run(run, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "decoder")
    assert run("--preview-vae", tmp_path / "decoder", "--limit", 1, "--record", "1").exit_code == 0
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["preview_sha256"]
    assert run("--limit", 1, "--record", "1").exit_code == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--record", "sometimes"], "Cannot read --record 'sometimes'"),
        (["--record", "every 0"], "Cannot read --record 'every 0'"),
        (["--record", "4"], "has steps 0 to 3"),
        (["--rewards", "collect-red,collect-red"], "different names"),
        (["--rewards", "collect-rad"], "Did you mean 'collect-red'"),
        (["--prompts", "nowhere.txt"], "There is no file or folder nowhere.txt"),
        (["--prompts", "lab:tests"], "lab:train, lab:held-out"),
        (["--preview-vae", "./nothing"], "preview decoder"),
    ],
)
def test_wrong_input_writes_nothing(run, tmp_path, more, sentence):
    result = run(*more)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_much_and_runs_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    result = run("--dry-run", "--record", "every 2")
    assert result.exit_code == 0
    assert "3 prompts with 3 seeds each: 36 denoiser calls, 27 pictures" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_without_a_folder_it_is_refused():
    result = CliRunner().invoke(app, ["ttsnap", "collect"])
    assert result.exit_code == 2
    assert "needs a folder for its results: add --out" in " ".join(result.stderr.split())
