"""`diffkit ttsnap compare`: every search on every prompt at equal cost, resumable, with figures that add up."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from test_strategies import Brightness
from tiny import tiny_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.lab.world import draw, held_out_scenes
from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward
from diffkit.seeds import generators
from ttsnap.evaluation.compare import _judged
from ttsnap.evaluation.compare_report import difference_figure, summarise_searches, table_rows
from ttsnap.evaluation.contenders import PairedReward, read_contenders

PROMPTS = ["a dog", "cat", "a red circle left of a blue square on gray"]
SEARCHES = "best-of-n,ttsp,ttsnap,halving,zero-order,fk"


UNSCORABLE = {"unscorable"}


@REWARDS.register("test-compare-plain")
def plain():
    def reward(images, prompts):
        return [
            float("nan") if prompt in UNSCORABLE else float(image.mean()) * 10
            for image, prompt in zip(images, prompts, strict=True)
        ]

    return as_reward(reward)


@REWARDS.register("test-compare-aware")
def aware():
    return Brightness()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_pipeline("ddim").save_pretrained(path)
    return path


def command(folder, out, *more, prompts=PROMPTS):
    out.parent.mkdir(parents=True, exist_ok=True)
    (file := out.parent / "prompts.txt").write_text("\n".join(prompts))
    fixed = {
        "--model": folder, "--prompts": file, "--reward": "test-compare-plain", "--noise-aware": "test-compare-aware",
        "--steps": 5, "--device": "cpu", "--seed": 7, "--budget": "3x", "--schedule": "1:0.5,2:0.5", "--group": 2,
        "--out": out, "--searches": SEARCHES,
    }  # fmt: skip
    words = [str(word) for pair in fixed.items() for word in pair]
    return CliRunner().invoke(app, ["ttsnap", "compare", *words, *more])


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "run"
    result = command(folder, out, "--format", "json")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return out, json.loads(result.stdout), {line["key"]: line for line in lines}


def items_of(journal):
    return [line.get("item", line) for line in journal.values()]


def test_every_search_runs_on_every_prompt_within_the_same_budget(done):
    _, rows, journal = done
    assert [row["search"] for row in rows] == SEARCHES.split(",")
    items = items_of(journal)
    assert {(item["search"], item["index"]) for item in items} == {
        (search, index) for search in SEARCHES.split(",") for index in range(3)
    }
    assert len({item["limit"] for item in items}) == 1
    assert all(0 < item["spent"] <= item["limit"] for item in items)
    best = next(row for row in rows if row["search"] == "best-of-n")
    assert (best["candidates"], best["calls"]) == (3, 15)
    assert best["unspent_share"] == pytest.approx(0, abs=1e-9)
    assert all(row["calls"] <= 15 for row in rows)


def test_figures_are_those_of_the_items(done):
    out, rows, journal = done
    items = items_of(journal)
    for row in rows:
        mine = [item for item in items if item["search"] == row["search"]]
        assert row["reward"] == pytest.approx(np.mean([item["reward"] for item in mine]))
    reward = {(item["search"], item["index"]): item["reward"] for item in items}
    gain = next(row for row in rows if row["search"] == "ttsp")["reward_gain"]
    differences = [reward["ttsp", index] - reward["best-of-n", index] for index in range(3)]
    assert gain["mean"] == pytest.approx(np.mean(differences))
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert gain["n"] == 3
    assert json.loads((out / "summary.json").read_text()) == rows


def test_pictures_are_the_stock_pipelines(done):
    out, _, journal = done
    item = next(item for item in items_of(journal) if item["search"] == "best-of-n" and item["index"] == 1)
    [stock] = tiny_pipeline("ddim")(
        "cat", num_inference_steps=5, guidance_scale=3.0, generator=generators([item["seed"]])[0]
    ).images
    saved = np.asarray(Image.open(out / item["image"])).astype(int)
    assert np.abs(saved - np.asarray(stock).astype(int)).max() <= 1
    assert Image.open(out / "images" / "differences.png").size[0] > 100
    assert Image.open(out / "images" / "pictures.png").size[0] > 100
    assert "Searches at equal cost" in (out / "report.html").read_text()


def test_only_scenes_are_judged(done):
    _, rows, journal = done
    judged = {item["index"] for item in items_of(journal) if item["judged"] is not None}
    assert judged == {2}
    assert all(row["judged"] in (0.0, 1.0) for row in rows)
    scenes = held_out_scenes(3, seed=0)
    for image, scene in zip(draw(scenes, seed=1), scenes, strict=True):
        assert _judged(image, scene.caption)["judged"] is True
    assert _judged(torch.zeros(3, 32, 32), scenes[0].caption) == {"judged": None, "judge_score": None}


def test_the_same_command_goes_on_where_it_was(done, folder, tmp_path):
    out, rows, _ = done
    again = tmp_path / "run"
    shutil.copytree(out, again)
    path = again / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:11]) + lines[11][:20])
    resumed = command(folder, again, "--format", "json")
    assert resumed.exit_code == 0, resumed.output
    timeless = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    assert [{n: v for n, v in row.items() if n != "seconds"} for row in json.loads(resumed.stdout)] == timeless
    assert path.read_text().startswith("".join(lines[:11]))
    other = command(folder, again, "--guidance", "2")
    assert other.exit_code == 2
    assert "guidance" in other.stderr


def test_a_prompt_that_cannot_be_scored_leaves_its_neighbours_alone(folder, tmp_path):
    more = ["--searches", "best-of-n,halving", "--format", "json", "--noise-aware", "none"]
    result = command(folder, tmp_path / "run", *more, prompts=["a dog", "unscorable", "cat"])
    assert result.exit_code == 3
    rows = json.loads(result.stdout)
    assert [(row["prompts"], row["failed"]) for row in rows] == [(3, 1), (3, 1)]
    assert rows[1]["reward_gain"]["n"] == 2
    UNSCORABLE.clear()
    again = command(folder, tmp_path / "run", *more, prompts=["a dog", "unscorable", "cat"])
    UNSCORABLE.add("unscorable")
    assert again.exit_code == 0, again.output
    assert [(row["prompts"], row["failed"]) for row in json.loads(again.stdout)] == [(3, 0), (3, 0)]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--searches", "best-of-n,luck"], "Unknown search 'luck'"),
        (["--searches", "best-of-n,best-of-n"], "different names"),
        (["--searches", "fk@2"], "eta must lie in"),
        (["--searches", "fk@0"], "is deterministic"),
        (["--searches", "index"], "needs a fitted rule"),
        (["--noise-aware", "none"], "knows noise levels"),
        (["--noise-aware", "test-compare-plain"], "does not know noise levels"),
        (["--budget", "0.5x"], "too small for one candidate"),
        (["--budget", "9s"], "counted cost"),
        (["--schedule", "4:0.5"], "before its last one"),
    ],
)
def test_wrong_input_writes_nothing(folder, tmp_path, more, sentence):
    result = command(folder, tmp_path / "run", *more)
    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_dry_run_runs_nothing(folder, tmp_path):
    assert command(folder, tmp_path / "run", "--dry-run").exit_code == 0
    assert not (tmp_path / "run").exists()


def test_contenders_take_their_own_eta_and_schedule():
    found = read_contenders("ttsnap,fk,best-of-n@0.5", schedules={"": None}, eta=0.0)
    assert [one.eta for one in found] == [0.0, 1.0, 0.5]
    assert [one.label for one in found] == ["ttsnap", "fk", "best-of-n@0.5"]


def test_unknown_is_none_and_lower_may_be_better():
    base = {"error": None, "judged": None, "candidates": 1, "cost": {"calls": 2}, "spent": 1.0, "limit": 2.0, "seconds": 1}  # fmt: skip  # noqa: E501
    items = [
        {**base, "search": search, "index": index, "reward": reward}
        for search, index, reward in [("best-of-n", 0, 1.0), ("best-of-n", 1, 2.0), ("ttsp", 0, 0.5), ("ttsp", 1, 1.0)]
    ]
    first, second = summarise_searches(items, higher_is_better=False)
    assert first["reward_gain"] is None
    assert first["judged"] is None
    assert second["reward_gain"]["mean"] == pytest.approx(0.75)
    assert second["unspent_share"] == 0.5
    _, single = summarise_searches([items[0], items[2]])
    assert single["reward_gain"] == {"mean": -0.5, "low": None, "high": None, "n": 1}
    assert table_rows([first, second, single])[1][2][2] == "-0.5000"
    difference_figure([first, second, single], reward="r", budget="4x")
    [alone] = summarise_searches(items[2:])
    assert alone["reward_gain"] is None


def test_finished_images_are_scored_plainly_and_estimates_by_the_one_that_knows_noise():
    images = torch.rand(2, 3, 8, 8)
    told = PairedReward(plain(), aware())
    assert list(told.score(images, ["a", "b"])) == pytest.approx((images.mean((1, 2, 3)) * 10).tolist())
    assert torch.equal(told.score_estimates(images, ["a", "b"], 0.0), aware().score_estimates(images, ["a", "b"], 0.0))
    opposite = aware()
    opposite.higher_is_better = False
    with pytest.raises(InputError, match="opposite directions"):
        PairedReward(plain(), opposite)
