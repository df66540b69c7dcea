"""Scoring recorded previews anew: the recorded reward itself gives back what was recorded."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.parameterization import log_snr
from diffkit.rewards import load_reward
from ttsnap.reward_tensor import save_npz
from ttsnap.trajectories.dataset import Trajectories
from ttsnap.trajectories.read import load_tensor
from ttsnap.trajectories.rescore import rescore


class Brightness:
    """Mean brightness plus the noise level it was told."""

    name, higher_is_better, range, flops_per_image = "brightness", False, (0.0, 1.0), 7.0

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))

    def score_estimates(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        return images.mean((1, 2, 3)) + log_snr


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trajectories") / "run"
    line = ["ttsnap", "collect", "--limit", "2", "--candidates", "3", "--steps", "4", "--record", "0,2"]
    done = CliRunner().invoke(app, [*line, "--out", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


def test_the_recorded_reward_gives_the_recorded_scores(collected: Path) -> None:
    found = Trajectories.open(collected)
    anew = rescore(found, "lab", load_reward("lab"))
    recorded = found.reward_tensor("lab")
    assert np.array_equal(np.isnan(anew.looks), np.isnan(recorded.looks))
    assert np.nanmax(np.abs(anew.looks - recorded.looks)) < 0.02  # previews are kept in 8 bits
    assert np.array_equal(anew.final, recorded.final)


def test_a_noise_aware_reward_is_told_the_level_and_the_sign_is_turned(collected: Path) -> None:
    found = Trajectories.open(collected)
    anew = rescore(found, "lab", Brightness())
    step = found.steps[1]
    wanted = -(found[0].estimates(step).mean((1, 2, 3)) + log_snr(found.sigmas[1]))
    assert torch.allclose(torch.tensor(anew.looks[0, :, step]).float(), wanted, atol=1e-5)
    assert anew.prices is not None
    assert anew.prices.verify == 7.0


def test_another_reward_is_saved_beside_the_recorded_one_with_its_prices(collected: Path, tmp_path: Path) -> None:
    found = Trajectories.open(collected)
    anew = rescore(found, "lab", Brightness())
    save_npz(tmp_path / "r.npz", found.reward_tensor("lab"), anew)
    tensor = load_tensor(tmp_path / "r.npz", "brightness")
    assert tensor.prices == anew.prices
    assert tensor.prompts == found.prompts
    assert load_tensor(tmp_path / "r.npz", "lab").prices == found.prices("lab")


def test_the_command_refuses_another_kind_of_file(collected: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["ttsnap", "rescore", str(collected), "--out", str(tmp_path / "r.json")])
    assert done.exit_code == 2
    assert ".npz" in done.stderr


def test_the_command_prints_a_row_a_step(collected: Path, tmp_path: Path) -> None:
    out = tmp_path / "rewards.npz"
    done = CliRunner().invoke(app, ["ttsnap", "rescore", str(collected), "--out", str(out), "--format", "json"])
    assert done.exit_code == 0, done.output
    assert [row["step"] for row in json.loads(done.stdout)] == [0, 2]
    assert load_tensor(out, "lab-noise-aware").looks.shape == (2, 3, 4)


def test_the_command_shows_a_tau_that_is_not_defined_as_missing(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "rewards.npz"
    line = ["ttsnap", "collect", "--limit", "1", "--candidates", "1", "--steps", "3", "--record", "1"]
    assert CliRunner().invoke(app, [*line, "--out", str(folder)]).exit_code == 0
    command = ["ttsnap", "rescore", str(folder), "--out", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        written, printed = (CliRunner().invoke(app, [*command, *more]) for more in (["--format", "json"], []))
    assert written.exit_code == 0, written.output
    [row] = json.loads(written.stdout)
    assert row["step"] == 1
    assert (row["tau of lab"], row["tau of lab-noise-aware"]) == (None, None)
    assert isinstance(row["log_snr"], float)
    assert printed.exit_code == 0, printed.output
    assert "–" in printed.stdout
    assert "nan" not in printed.stdout


def test_the_recorded_reward_is_refused_before_anything_is_scored(
    collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttsnap.trajectories.rescore.score_checked", lambda *args, **options: pytest.fail("scored"))
    line = ["ttsnap", "rescore", str(collected), "--reward", "lab", "--out", str(tmp_path / "r.npz")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2, done.output
    assert "'lab' is the recorded one" in done.stderr
