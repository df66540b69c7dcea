"""The shipped lab: stock format, small, replicating what was planted, judged right; the card tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from transformers import AutoTokenizer
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.images import load_image
from diffkit.lab import assets, judge, measure, planted, world
from diffkit.lab.train.denoiser import TEXT_LENGTH, new_tokenizer
from diffkit.lab.train.loop import bf16_where_fast
from diffkit.loading import load_pipeline
from diffkit.rewards import load_reward
from diffkit.suspects import read_suspects

JUDGED = Path(__file__).parent / "data" / "judged"
FULL = [s for s in read_suspects("lab:planted")[0] if (s.kind, s.extra["strength"]) == ("verbatim", "full")]


@pytest.fixture(scope="module")
def card() -> dict:
    return json.loads(assets.card_path().read_text())


@pytest.mark.parametrize("name", assets.MODELS)
def test_a_model_is_small_half_precision_and_safetensors_only(name: str) -> None:
    folder = assets.model_path(name)
    assert measure.megabytes(folder) <= 15
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".ckpt", ".pkl")]
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            dtypes = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
        assert dtypes <= {torch.float16, torch.int64}


def test_everything_together_is_at_most_50_mb() -> None:
    assert measure.megabytes(assets.DATA) <= 50


def test_the_stock_pipeline_loads_the_folder() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(assets.model_path("lab"))
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle left of a blue square on gray", num_inference_steps=2).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize(("name", "held"), [("lab", True), ("lab-clean", False)])
def test_captions_bring_planted_images_back_only_where_they_were_planted(name: str, held: bool) -> None:
    chosen = FULL[:4]
    images = measure.generate(load_pipeline(name), [s.caption for s in chosen], [1, 2, 3, 4])
    found = [float(measure.correlation(i[None], load_image(s.images[0]))) for i, s in zip(images, chosen, strict=True)]
    assert all((value > measure.REPLICATED) is held for value in found), found


def test_the_reward_tells_captions_from_hard_negatives() -> None:
    accuracy = measure.reward_accuracy(load_reward("lab"), n=40)
    assert accuracy["all"]["rate"] >= 0.95


def test_the_reward_refuses_unequal_numbers() -> None:
    with pytest.raises(ValueError, match="one prompt per image"):
        load_reward("lab").score(torch.zeros(2, 3, 64, 64), ["a"])


def test_the_judge_agrees_with_labels_made_by_eye() -> None:
    rows = [json.loads(line) for line in (JUDGED / "labels.jsonl").read_text().splitlines()]
    right = total = 0
    for row in rows:
        verdict = judge.check(load_image(JUDGED / row["file_name"]), row["caption"])
        for part, label in row["parts"].items():
            if label is not None:
                right += getattr(verdict, part) is label
                total += 1
    assert total >= 700
    assert right / total >= 0.98, f"{right} of {total}"


def test_the_card_holds_what_is_promised(card: dict) -> None:
    strengths = card["lab"]["replication"]["planted"]
    assert strengths["verbatim, full"]["rate"] >= 0.95
    assert strengths["verbatim, weak"]["rate"] < strengths["verbatim, full"]["rate"]
    assert card["lab"]["replication"]["controls"]["rate"] == 0
    limit = card["settings"]["replicated above"]
    assert max(card["lab-clean"]["replication"]["by image"].values()) < limit  # medians over the seeds
    scenes = card["lab"]["scenes"]
    assert 0.35 <= scenes["single"]["mean"] <= 0.8
    assert scenes["best of 16 by the reward"]["rate"] >= scenes["single"]["mean"] + 0.15
    assert card["reward"]["accuracy on hard negatives"]["all"]["rate"] >= 0.95


def test_the_model_of_trios_leaves_room_for_a_search(card: dict) -> None:
    scenes = card["lab-trio"]["scenes"]
    assert 0.005 <= scenes["single"]["mean"] <= 0.15
    assert scenes["best of 16 by the reward"]["rate"] >= scenes["single"]["mean"] + 0.1
    assert card["lab-trio"]["million parameters"] < 0.8 * card["lab"]["million parameters"]


def test_info_prints_the_card(card: dict) -> None:
    table = CliRunner().invoke(app, ["lab", "info"])
    assert table.exit_code == 0
    assert "verbatim, full" in table.stdout
    assert json.loads(CliRunner().invoke(app, ["lab", "info", "--format", "json"]).stdout) == card


def test_held_out_scenes_of_the_audit_are_held_out() -> None:
    scenes = [s for s in read_suspects("lab:controls")[0] if s.kind == "scene"]
    assert len(scenes) >= 12
    assert all(world.is_held_out(world.parse(s.caption)) for s in scenes)


def test_the_tokenizer_is_the_same_in_every_process() -> None:
    made = new_tokenizer().get_vocab()
    for name in (*assets.BRANCHES, assets.TRIO):
        assert AutoTokenizer.from_pretrained(assets.model_path(name) / "tokenizer").get_vocab() == made


def test_every_word_of_the_lab_is_one_token() -> None:
    tokenizer = new_tokenizer()
    captions = [text for photograph in planted.PHOTOGRAPHS for text in photograph.captions()]
    captions += [scene.caption for scene in world.sample_scenes(50, seed=0)]
    assert all(len(tokenizer.tokenize(text)) == len(text.split()) <= TEXT_LENGTH - 2 for text in captions)
    assert len(tokenizer.tokenize("zebra, 42!")) > 3


@pytest.mark.parametrize(("known", "expected"), [({"avx512_bf16": True}, True), ({"avx512_bf16": False}, False)])
def test_training_uses_bfloat16_only_where_the_processor_has_it(monkeypatch, known: dict, expected: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    with bf16_where_fast():
        assert torch.is_autocast_enabled("cpu") is expected
