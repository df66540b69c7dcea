"""Adaptive budget: one total for all prompts of a call, never exceeded, and a schedule where the book says so."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli_compare import command, folder, items_of
from test_strategies import SEED, Brightness, Counted
from tiny import tiny_pipeline
from tiny_index import LOOKS, STEPS, book
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.ledger import Cost, Prices
from diffkit.seeds import generators
from ttsnap import PruningSchedule, TTSnapPipeline
from ttsnap.schedules.load import load_index
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.index import IndexSearch
from ttsnap.search.strategies.pruning import Pruning

__all__ = ["folder"]  # a fixture

PROMPTS = ["a dog", "cat", "at it", "do"]
EARLY = PruningSchedule.parse("1:0.4")


class Uneven(Brightness):
    """Seeds of some prompts differ much more than those of others."""

    def score(self, images, prompts):
        scale = [8.0 if "a" in prompt else 0.2 for prompt in prompts]
        return 5 + (super().score(images, prompts) - 5) * images.new_tensor(scale)


@functools.cache
def found(budget: str):
    counted = Counted()
    result = counted.search(AdaptiveSearch(book()), budget, reward=Uneven(), prompts=PROMPTS)
    return result, sum(counted.rows)


@pytest.mark.parametrize("budget", ["1.2x", "2x", "4.3x"])
def test_the_total_is_nearly_used_and_never_exceeded(budget):
    result, rows = found(budget)
    ledger = result.ledger
    assert ledger.denoiser_rows == rows
    one = Cost(STEPS, 1, 1).at(ledger.flops)
    share = sum(spent.at(ledger.flops) for spent in result.spent) / (len(PROMPTS) * float(budget[:-1]) * one)
    assert share <= 1
    assert ledger.budget["unspent"] >= 0
    assert share > 0.8
    most = book().cap * float(budget[:-1]) * one
    assert all(0 < spent.at(ledger.flops) <= most * (1 + 1e-9) for spent in result.spent)


def test_prompts_get_what_they_are_worth():
    spent = [cost.calls for cost in found("4.3x")[0].spent]
    assert min(spent[:3]) > spent[3]  # only the last has no "a"


def test_the_trace_states_each_look_once_with_those_that_went_on():
    result, _ = found("4.3x")
    assert [(look.step, look.prompt) for look in result.trace] == [
        (step, prompt) for step in (*LOOKS, STEPS - 1) for prompt in range(len(PROMPTS))
    ]
    for prompt, [winner] in enumerate(result.winners):
        looks = [look for look in result.trace if look.prompt == prompt]
        assert looks[0].candidates == list(range(result.notes["opened"][prompt]))
        assert [look.survivors for look in looks[:-1]] == [look.candidates for look in looks[1:]]
        assert looks[-1].survivors == [winner.candidate.index]
        assert looks[-1].scores[looks[-1].candidates.index(winner.candidate.index)] == winner.score
        bounds = [0, *(step + 1 for step in LOOKS), STEPS]
        calls = sum(
            (stop - start) * len(look.candidates) for start, stop, look in zip(bounds, bounds[1:], looks, strict=False)
        )
        assert calls == result.spent[prompt].calls


def test_winners_are_the_stock_images_of_their_seeds_to_the_bit():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline("dpm-sde"), reward=Uneven())
    options = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
    out = pipe(PROMPTS[:2], **options, search="adaptive", index=book(), budget="4x", seed=SEED, micro_batch=1)
    for prompt, seed, image in zip(PROMPTS, out.seeds, out.images, strict=False):
        [stock] = tiny_pipeline("dpm-sde")(prompt, **options, generator=generators([seed])[0]).images
        assert np.array_equal(np.asarray(image), np.asarray(stock))
    assert sum(cost.calls for cost in out.spent) == out.ledger.calls


def test_the_books_schedule_takes_over_where_it_was_better():
    both = replace(book(), fallbacks=(EARLY, None))
    taken = Counted().search(AdaptiveSearch(both), "3x", prompts=PROMPTS[:2])
    pruned = Counted().search(Pruning("p", EARLY, "either"), "3x", prompts=PROMPTS[:2])
    assert taken.notes["schedule"] == str(EARLY)
    assert taken.spent == pruned.spent
    assert [winner.candidate.seed for [winner] in taken.winners] == [w.candidate.seed for [w] in pruned.winners]
    assert Counted().search(AdaptiveSearch(both), "5x", prompts=PROMPTS[:2]).notes["schedule"] == "index"
    least = Counted().search(AdaptiveSearch(book()), "1x", prompts=PROMPTS[:2])  # does not pay for looks
    assert (least.notes["schedule"], [spent.calls for spent in least.spent]) == ("", [STEPS] * 2)


def test_what_cannot_be_followed_is_refused():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline(), reward=Brightness())
    options = {"num_inference_steps": STEPS, "budget": "2x"}
    with pytest.raises(InputError, match="needs a fitted rule; as index give lab, lab-trio"):
        pipe("cat", **options, search="adaptive")
    for search in (None, "halving", IndexSearch(book())):
        with pytest.raises(InputError, match="index is for the searches adaptive, index, index-mean"):
            pipe("cat", **options, search=search, index=book())
    with pytest.raises(InputError, match="looks for one image"):
        pipe("cat", **options, search="adaptive", index=book(), num_images_per_prompt=2)
    late = replace(book(), fallbacks=(PruningSchedule.parse("5:0.5"), None))
    with pytest.raises(InputError, match="before its last one"):
        pipe("cat", **options, search="adaptive", index=late)


@pytest.mark.parametrize("name", ["lab", "lab-trio"])
def test_rules_are_shipped_for_the_labs(name):
    rule = load_index(name)
    assert (rule.model.calls, rule.info["reward"]) == (20, f"{name}-noise-aware")
    assert len(rule.fallbacks) == len(rule.entries)
    assert None in rule.fallbacks


def test_looks_of_a_preview_decoder_cost_what_it_costs():
    model = book().model
    assert model.costs(Prices(10.0, 4.0, 1.0)) == pytest.approx(np.array([25, 25, 25]) / 65)
    assert model.costs(Prices(10.0, 4.0, 1.0, preview=0.5)) == pytest.approx(np.array([21.5, 21.5, 25]) / 65)


def compared(model: Path, out: Path, *more: str):
    (out.parent / "index.json").write_text(book(5).to_json())
    words = ["--searches", "best-of-n,adaptive", "--index", str(out.parent / "index.json"), "--format", "json"]
    return command(model, out, *words, *more)


def test_a_group_is_one_unit_of_work_and_part_of_the_run(folder, tmp_path):
    out = tmp_path / "run"
    first = compared(folder, out)
    assert first.exit_code == 0, first.output
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    items = {line["key"]: line for line in map(json.loads, lines)}
    adaptive = [item for item in items_of(items) if item["search"] == "adaptive"]
    for group in ({0, 1}, {2}):
        mine = [item for item in adaptive if item["index"] in group]
        assert sum(item["spent"] for item in mine) <= sum(item["limit"] for item in mine)
    at = next(place for place, line in enumerate(lines) if '"adaptive/000001"' in line)
    (out / "journal.jsonl").write_text("".join(lines[:at]))  # killed within the first group
    assert compared(folder, out).exit_code == 0
    again = {line["key"]: line for line in map(json.loads, (out / "journal.jsonl").read_text().splitlines())}
    timeless = [[{**item, "seconds": 0} for item in items_of(each)] for each in (items, again)]
    assert sorted(map(str, timeless[0])) == sorted(map(str, timeless[1]))
    other = compared(folder, out, "--group", "3")
    assert other.exit_code == 2
    assert "group" in other.stderr


def generated(model: Path, out: Path, *more: str):
    (out.parent / "index.json").write_text(book(5).to_json())
    fixed = ["--model", str(model), "--reward", "test-compare-aware", "--steps", "5", "--device", "cpu", "--seed", "7"]
    search = ["--search", "adaptive", "--index", str(out.parent / "index.json"), "--budget", "3x", "--group", "2"]
    words = ["ttsnap", "generate", *PROMPTS[:3], *fixed, *search, "--out", str(out), *more]
    return CliRunner().invoke(app, words)


def test_generate_shares_one_budget_among_the_prompts_of_a_group(folder, tmp_path):
    out = tmp_path / "run"
    first = generated(folder, out, "--format", "json", "--micro-batch", "1")
    assert first.exit_code == 0, first.output
    items = json.loads(first.stdout)
    assert [item["prompt"] for item in items] == PROMPTS[:3]
    for group in ([0, 1], [2]):
        mine = [items[index] for index in group]
        assert all(item["group"] == group for item in mine)
        assert sum(item["cost"]["calls"] for item in mine) == mine[0]["ledger"]["calls"] <= len(group) * 15
        assert mine[0]["ledger"]["budget"]["unspent"] >= 0
    for item in items:
        looks = item["trace"]
        assert [look["step"] for look in looks] == [1, 3, 4]
        assert item["candidates"] == len(looks[0]["candidates"])
        [winner] = item["winners"]
        [stock] = tiny_pipeline("ddim")(
            item["prompt"], num_inference_steps=5, guidance_scale=3.0, generator=generators([winner["seed"]])[0]
        ).images
        assert np.array_equal(np.asarray(Image.open(out / winner["image"])), np.asarray(stock))
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (out / "journal.jsonl").write_text(lines[0])  # killed within the first group
    again = json.loads(generated(folder, out, "--format", "json", "--micro-batch", "1").stdout)
    assert [(item["winners"], item["cost"]) for item in again] == [(item["winners"], item["cost"]) for item in items]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--search", "luck"], "Unknown search 'luck'"),
        (["--search", "halving"], "--index is for the searches adaptive, index, index-mean"),
        (["--enough", "3"], "leave out --search"),
        (["--index", "nowhere.json"], "Cannot read an index rule"),
        (["--winners", "2"], "looks for one image"),
    ],
)
def test_generate_refuses_before_it_writes(folder, tmp_path, more, sentence):
    result = generated(folder, tmp_path / "run", *more)
    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
