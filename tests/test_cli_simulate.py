"""`diffkit ttsnap simulate`: what it prints is what the library computes; refusals name what to do."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.ledger import Prices
from diffkit.rewards.base import as_reward
from ttsnap.evaluation.accounting import PUBLISHED_PRICES
from ttsnap.evaluation.budget_curves import budget_curves, finished_cost
from ttsnap.reward_tensor import RewardTensor, save_npz
from ttsnap.schedules.fitted_schedule import Entry, FittedSchedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.trajectories.collect import collect
from ttsnap.trajectories.dataset import Trajectories
from ttsnap.trajectories.read import load_tensor
from ttsnap.trajectories.recorder import CollectSettings

PUBLISHED = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    """Two rewards whose looks come nearer to the final one from step to step."""
    rng = np.random.default_rng(0)
    made = []
    for name in ("one", "two"):
        final = rng.normal(size=(6, 60))
        made.append(
            RewardTensor(
                final[..., None] + rng.normal(size=(6, 60, 20)) * np.linspace(2, 0.1, 20),
                final,
                name,
                prices=PUBLISHED_PRICES,
            )
        )
    save_npz(tmp_path / "rewards.npz", *made)
    return tmp_path / "rewards.npz"


def command(*arguments):
    return CliRunner().invoke(app, ["ttsnap", "simulate", *map(str, arguments)])


def result(*arguments):
    done = command(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_json_holds_what_the_library_computes(rewards: Path) -> None:
    found = result(rewards, "--key", "two", "--key", "one", "--budgets", "400:1200:400", "--resamples", 20, "--seed", 3)
    group = [load_tensor(rewards, name) for name in ("two", "one")]
    curves = budget_curves(group, PUBLISHED, (400, 800, 1200), resamples=20, seed=3)
    assert [one["name"] for one in found["rewards"]] == ["two", "one"]
    for report, curve in zip(found["rewards"], curves, strict=True):
        assert report["gain_percent"] == pytest.approx(curve.utilisation._asdict())
        assert [at["budget"] for at in report["budgets"]] == [400, 800, 1200]
        for b, at in enumerate(report["budgets"]):
            ours, best, bought = at["schedule"], at["best_of_n"], curve.allotments[b]
            assert ours["reward"] == pytest.approx(curve.values[:, b].mean())
            assert best["reward"] == pytest.approx(curve.best_of_n[:, b].mean())
            assert (ours["candidates"], ours["survivors"]) == (bought.candidates, list(bought.survivors))
            assert ours["spent"] + ours["unspent"] == pytest.approx(at["budget"])
            assert ours["unspent"] >= 0
            difference = curve.values[:, b] - curve.best_of_n[:, b]
            assert at["difference"]["mean"] == pytest.approx(difference.mean())
            assert at["difference"]["standard_error"] == pytest.approx(difference.std(ddof=1) / math.sqrt(6))
    assert result(rewards, "--key", "two", "--seed", 3) != result(rewards, "--key", "two", "--seed", 4)


def test_accounting_costs_and_budgets_in_finished_candidates(rewards: Path) -> None:
    def first(*more):
        return result(rewards, "--key", "one", *more)["rewards"][0]["budgets"]

    assert [at["budget"] for at in first()] == list(range(400, 4001, 200))
    assert first("--budgets", "2000", "--accounting", "published")[0]["schedule"]["candidates"] == 38
    dear = first("--budgets", "4x,10x", "--call-cost", 1, "--verify-cost", 30)
    assert [at["budget"] for at in dear] == [200, 500]
    assert [at["equivalent"] for at in dear] == [4, 10]
    assert [at["best_of_n"]["candidates"] for at in dear] == [4, 10]
    assert dear[0]["schedule"]["spent"] <= 200


def test_a_fitted_file_may_hold_a_schedule_for_each_budget(rewards: Path, tmp_path: Path) -> None:
    late, early = PruningSchedule.parse("11:0.5"), PruningSchedule.parse("4:0.3")
    entries = (Entry(398.4, 2, 3, late), Entry(1992, 10, 20, early))
    (tmp_path / "fitted.json").write_text(FittedSchedule(late.steps, late.keep, entries, 20).to_json())
    found = result(rewards, "--key", "one", "--schedule", tmp_path / "fitted.json", "--budgets", "400,2000")
    assert [at["schedule"]["schedule"] for at in found["rewards"][0]["budgets"]] == ["11:0.5", "4:0.3"]


def test_rewards_together_and_best_of_n(rewards: Path) -> None:
    keys = ["--key", "one", "--key", "two", "--budgets", "800,1600"]
    alone, joint = result(rewards, *keys), result(rewards, *keys, "--combine", "rank")
    for a, j in zip(alone["rewards"], joint["rewards"], strict=True):
        assert j["budgets"][1]["schedule"]["reward"] < a["budgets"][1]["schedule"]["reward"]
    none = result(rewards, "--key", "one", "--schedule", "", "--budgets", "800,1600", "--resamples", 400)
    assert none["rewards"][0]["gain_percent"]["gain"] == pytest.approx(0, abs=10)


def test_the_table_is_plain_text_on_stdout_and_marks_what_is_capped(rewards: Path, tmp_path: Path) -> None:
    done = command(rewards, "--key", "one", "--budgets", "400,800,9000", "--plot", tmp_path / "sub" / "c.png")
    assert done.exit_code == 0, done.output
    assert "one: gain over best-of-N" in done.stdout
    assert "60*" in done.stdout
    assert "\x1b" not in done.stdout
    assert "2.5x" in command(rewards, "--key", "one", "--budgets", "2.5x").stdout
    assert Image.open(tmp_path / "sub" / "c.png").size[0] > 400
    assert "best-of-N" in command(rewards, "--key", "one", "--schedule", "", "--budgets", "400").stdout


def test_unknown_scores_are_null_and_counted(tmp_path: Path) -> None:
    final = np.random.default_rng(0).normal(size=(3, 30))
    final[0], final[1, :5] = np.nan, np.nan
    looks = np.repeat(final[..., None], 20, axis=2)
    save_npz(tmp_path / "x.npz", RewardTensor(looks, final, "x", prices=PUBLISHED_PRICES))
    one = result(tmp_path / "x.npz", "--budgets", "800,1600")["rewards"][0]
    assert (one["prompts"], one["prompts_without_winner"]) == (3, 1)
    assert one["missing_scores"] == 35 * 21
    assert one["gain_percent"]["gain"] > 0  # of the two prompts that have scores


def test_repeated_candidates_are_said(rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    recorded = load_tensor(rewards, "one")
    looks, final = recorded.looks.copy(), recorded.final.copy()
    looks[:, 40:], final[:, 40:] = looks[:, :20], final[:, :20]
    save_npz(tmp_path / "x.npz", RewardTensor(looks, final, "x", prices=PUBLISHED_PRICES))
    options = [
        "fit",
        tmp_path / "x.npz",
        "--budget",
        400,
        "--out",
        tmp_path / "s.json",
        "--rule",
        "index",
        "--folds",
        2,
    ]
    fitted = CliRunner().invoke(app, ["ttsnap", *map(str, options)])
    for done in (command(tmp_path / "x.npz", "--budgets", "400,800"), fitted):
        assert "x: 40 of 60 candidates are distinct" in done.stderr, done.output


def test_a_collected_folder_brings_its_rewards_and_its_costs(tmp_path: Path) -> None:
    rewards = {"mean": as_reward(lambda images, prompts: images.mean(dim=(1, 2, 3))),
               "red": as_reward(lambda images, prompts: images[:, 0].mean(dim=(1, 2)))}  # fmt: skip
    settings = CollectSettings(candidates=3, num_inference_steps=4, micro_batch=3)
    collect(tiny_pipeline(), ["a dog", "cat"], rewards, settings, out=tmp_path / "run")
    recorded = Trajectories.open(tmp_path / "run")
    prices = recorded.prices("red")
    found = result(tmp_path / "run", "--key", "red", "--schedule", "1:0.5", "--budgets", "2x,3x")
    assert found["finished"] == pytest.approx(4 * prices.call + prices.decode + prices.verify)
    curve = budget_curves(recorded.reward_tensor("red"), PruningSchedule.parse("1:0.5"),
                          [2 * found["finished"], 3 * found["finished"]], prices=prices)[0]  # fmt: skip
    points = found["rewards"][0]["budgets"]
    assert [at["schedule"]["reward"] for at in points] == pytest.approx(curve.values.mean(axis=0))
    assert [at["best_of_n"]["candidates"] for at in points] == [2, 3]
    assert len(result(tmp_path / "run", "--key", "red", "--schedule", "")["rewards"][0]["budgets"]) == 2
    assert "choose the plain one" in command(tmp_path / "run", "--key", "red", "--plain").stderr
    assert "mean, red" in command(tmp_path / "run").stderr


def test_one_prompt_has_no_standard_error(rewards: Path, tmp_path: Path) -> None:
    save_npz(tmp_path / "x.npz", load_tensor(rewards, "one").select([0]))
    point = result(tmp_path / "x.npz", "--budgets", "400")["rewards"][0]
    assert point["gain_percent"] is None
    assert point["budgets"][0]["difference"]["low"] is None
    assert command(tmp_path / "x.npz", "--budgets", "400").exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--key", "three"], "one, two"),
        ([], "one, two"),
        (["--key", "one", "--budgets", "50"], "too small"),
        (["--key", "one", "--budgets", "many"], "400:4000:200"),
        (["--key", "one", "--schedule", "19:0.5"], "before its last"),
        (["--key", "one", "--schedule", "nonsense"], "nonsense"),
        (["--key", "one", "--call-cost", "3"], "--verify-cost"),
        (["--key", "one", "--plot", "c.gif"], ".png"),
        (["--key", "one", "--plain"], "one kind of looks"),
    ],
)
def test_wrong_input_exits_with_2_and_one_sentence(rewards: Path, more: list[str], message: str) -> None:
    done = command(rewards, *more)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dry_run_only_checks(rewards: Path, tmp_path: Path) -> None:
    done = command(rewards, "--key", "one", "--plot", tmp_path / "c.png", "--dry-run")
    assert (done.exit_code, done.stdout, (tmp_path / "c.png").exists()) == (0, "", False)
    assert command(rewards, "--key", "one", "--budgets", "none", "--dry-run").exit_code == 2


def test_costs_that_nobody_gave_are_refused_and_published_ones_are_named(
    rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rule in simulate and fit."""
    monkeypatch.setenv("DIFFKIT_QUIET", "0")
    recorded = load_tensor(rewards, "one")
    save_npz(tmp_path / "x.npz", RewardTensor(recorded.looks, recorded.final, "x"))
    (tmp_path / "y_base").mkdir()
    for step in range(20):
        rows = {p: [float(score) for score in recorded.looks[p, :, step]] for p in range(6)}
        (tmp_path / "y_base" / f"p6_i60_s{step:02d}.yaml").write_text(yaml.safe_dump(rows))
    for name, more in (("simulate", []), ("fit", ["--out", tmp_path / "s.json", "--dry-run"])):
        refused, published, given = (
            CliRunner().invoke(app, ["ttsnap", name, *map(str, [source, "--budgets", "400,800", *more, *costs])])
            for source, costs in (
                (tmp_path / "x.npz", []),
                (tmp_path / "y_base", []),
                (tmp_path / "x.npz", ["--call-cost", 9.9, "--verify-cost", 1.2]),
            )
        )
        assert refused.exit_code == 2
        assert "--call-cost and --verify-cost" in refused.stderr
        assert (published.exit_code, given.exit_code) == (0, 0), published.output
        assert "as published for FLUX.1-dev at 512 x 512: 9.9 a call and 1.2 a look" in published.stderr
        assert "published" not in given.stderr
    assert result(tmp_path / "y_base", "--budgets", "400")["costs"]["source"] == "published"


def test_the_prices_of_a_finished_candidate_are_the_unit_of_x() -> None:
    assert finished_cost(Prices(2.0, 1.0, 0.5, preview=0.1), 10) == 21.5
