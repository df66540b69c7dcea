"""The lab's world: captions, drawing, the mechanical judge, the labels the reward learns from."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffkit.lab import assets, judge, planted, textures, world
from diffkit.lab.train import examples
from diffkit.suspects import read_suspects

scenes = st.integers(0, 2**31 - 1).map(lambda seed: world.sample_scenes(1, seed=seed)[0])


@given(scenes)
def test_a_caption_reads_back_as_its_scene(scene: world.Scene) -> None:
    assert world.parse(scene.caption) == scene


@pytest.mark.parametrize("caption", ["", "a red circle", "a red circle near a blue square on gray", "two cats"])
def test_a_foreign_caption_is_refused_with_an_example(caption: str) -> None:
    with pytest.raises(ValueError, match="expected a scene such as"):
        world.parse(caption)


def test_the_judge_is_exact_on_rendered_scenes() -> None:
    drawn = world.sample_scenes(600, seed=11)
    judgements = [judge.check(image, scene) for image, scene in zip(world.draw(drawn, seed=12), drawn, strict=True)]
    assert all(judgement.correct for judgement in judgements)
    assert min(judgement.score for judgement in judgements) > 0.9


def test_the_judge_refuses_every_hard_negative() -> None:
    drawn = world.sample_scenes(120, seed=13)
    rng = np.random.default_rng(0)
    for image, scene in zip(world.draw(drawn, seed=14), drawn, strict=True):
        truth = judge.check(image, scene)
        for negative in examples.hard_negatives(scene, rng):
            wrong = judge.check(image, negative)
            assert not wrong.correct
            assert wrong.score < truth.score


def test_the_judge_names_the_part_that_is_wrong() -> None:
    scene = world.parse("a red circle left of a blue square on gray")
    image = world.draw([scene], seed=0)[0]
    assert not judge.check(image, "a red circle right of a blue square on gray").relation
    assert not judge.check(image, "a green circle left of a blue square on gray").subject
    assert not judge.check(image, "a red circle left of a blue triangle on gray").object
    assert not judge.check(image, "a red circle left of a blue square on black").background
    extra = world.Placed(world.Thing("yellow", "circle"), 10, 54, 6)
    image = image + world.cover(extra) * (torch.tensor([0.96, 0.89, 0.16]).view(3, 1, 1) - image)
    assert not judge.check(image, scene).nothing_else


def test_the_judge_stands_blank_and_noisy_images() -> None:
    assert not judge.check(torch.zeros(3, 64, 64), "a red circle left of a blue square on gray").correct
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    judgement = judge.check(noise, "a red circle left of a blue square on gray")
    assert not judgement.correct
    assert 0 <= judgement.score <= 1


def test_held_out_scenes_are_in_no_training_set() -> None:
    trained = {scene.caption for scene in world.training_scenes(3000, seed=1)}
    held_out = [scene.caption for scene in world.held_out_scenes(100, seed=2)]
    assert len(set(held_out)) == 100
    assert not trained & set(held_out)


def test_dead_leaves_are_images_and_follow_their_generator() -> None:
    first, again = (textures.dead_leaves(2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (2, 3, 64, 64)
    assert first.min() >= 0
    assert first.max() <= 1
    assert first.std() > 0.05


@given(scenes, st.integers(0, 2**31 - 1))
def test_labels_of_the_true_caption_are_full_and_of_a_flipped_one_are_not(scene: world.Scene, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = examples.Picture(world.arrange(scene, rng), scene.background)
    assert examples.label(picture, scene).score == pytest.approx(1.0)
    for negative in examples.hard_negatives(scene, rng):
        assert examples.label(picture, negative).score < 0.95


def test_planted_and_controls_never_share_a_photograph() -> None:
    sources = {kind: {p.source for p in planted.PHOTOGRAPHS if (p.kind == "control") is kind} for kind in (True, False)}
    assert not sources[True] & sources[False]


def test_the_planted_set_has_what_an_audit_needs() -> None:
    entries = planted.planted()
    assert sum(p.kind == "verbatim" for p in entries) >= 16
    assert sum(p.kind == "template" for p in entries) >= 4
    assert len({p.strength for p in entries}) >= 3
    assert all(len(set(p.captions())) == 12 for p in entries if p.kind == "template")


def test_every_shipped_image_has_provenance_and_a_row() -> None:
    with (assets.DATA / "PROVENANCE.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    images = {f"{name}/{path.name}" for name in assets.PHOTOGRAPHS for path in (assets.DATA / name).glob("*.png")}
    assert set(rows) == images
    assert all(row["licence"] and row["author"] for row in rows.values())
    for name, expected in (("planted", 24), ("controls", 30)):
        suspects, errors = read_suspects(f"lab:{name}")
        assert (len(suspects), errors) == (expected, [])
        assert all(Image.open(suspect.images[0]).size == (64, 64) for suspect in suspects)
