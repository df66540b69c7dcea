"""Scenes of three things: drawn by rule, judged and rewarded clause by clause, and the model that draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.lab import assets, judge, measure, world
from diffkit.lab.train import loop
from diffkit.lab.train.trio import FIRST_LEVEL, from_level, train_trio, trio_examples, without_blocks
from diffkit.lab.trio import (
    ACROSS,
    UPRIGHT,
    arrange_trio,
    clauses,
    draw_trios,
    held_out_trios,
    parse_trio,
    sample_trios,
)
from diffkit.loading import load_pipeline
from diffkit.rewards import load_reward
from ttsnap.noise_aware.reward import NoiseAwareReward

CAPTION = "a red circle left of a blue square above a green triangle on gray"


def wrong(trio):
    """The trio with one thing made wrong, in every way that there is."""
    return [
        replace(trio, relation=world.OPPOSITE[trio.relation]),
        replace(trio, other_relation=world.OPPOSITE[trio.other_relation]),
        replace(trio, first=trio.second, second=trio.first),
        replace(trio, third=world.Thing(trio.third.colour, "circle" if trio.third.shape != "circle" else "square")),
        replace(trio, background="gray" if trio.background != "gray" else "white"),
    ]


def test_a_caption_is_read_back_and_has_two_clauses() -> None:
    trio = parse_trio(CAPTION)
    assert trio is not None
    assert trio.caption == CAPTION
    assert clauses(CAPTION) == (
        "a red circle left of a blue square on gray",
        "a blue square above a green triangle on gray",
    )
    two = "a red circle left of a blue square on gray"
    assert parse_trio(two) is None
    assert clauses(two) == (two, two)
    assert clauses("a cat") == ("a cat", "a cat")


def test_samples_are_of_one_form_and_fit_the_text_encoder() -> None:
    tokenizer = load_pipeline("lab-clean").tokenizer
    for trio in sample_trios(300, seed=1):
        assert parse_trio(trio.caption) == trio
        assert len({trio.first.colour, trio.second.colour, trio.third.colour}) == 3
        assert (trio.relation in ACROSS) == (trio.other_relation in UPRIGHT)
        assert len(tokenizer(trio.caption).input_ids) <= tokenizer.model_max_length


def test_things_stand_apart_inside_the_canvas_and_as_the_caption_says() -> None:
    rng = np.random.default_rng(2)
    for trio in sample_trios(100, seed=2):
        placed = arrange_trio(trio, rng)
        for one, other, relation in zip(placed, placed[1:], (trio.relation, trio.other_relation), strict=False):
            step = np.array([one.x - other.x, one.y - other.y])
            assert step @ np.array(world.RELATIONS[relation]) > 0.9 * np.linalg.norm(step)
        assert all(thing.radius < min(thing.x, thing.y, 63 - thing.x, 63 - thing.y) for thing in placed)


def test_the_judge_says_right_of_drawn_trios_and_wrong_of_changed_ones() -> None:
    trios = held_out_trios(60, seed=3)
    for trio, image in zip(trios, draw_trios(trios, seed=3), strict=True):
        said = judge.check(image, trio.caption)
        assert said.correct, (trio.caption, said)
        assert 0.8 < said.score <= 1
        for other in wrong(trio):
            assert not judge.check(image, other).correct, (trio.caption, other.caption)


def test_a_fourth_thing_is_something_else() -> None:
    trio = parse_trio(CAPTION)
    things = [
        world.Placed(trio.first, 12, 20, 7), world.Placed(trio.second, 40, 20, 7), world.Placed(trio.third, 40, 50, 7),
    ]  # fmt: skip
    assert judge.check(world.paint(things, "gray"), CAPTION).correct
    fourth = world.Placed(world.Thing("pink", "circle"), 12, 50, 7)
    said = judge.check(world.paint([*things, fourth], "gray"), CAPTION)
    assert said[:5] == (True, True, True, True, False)


def test_the_reward_is_the_mean_of_the_clauses_and_prefers_the_truth() -> None:
    reward, plain, trios = load_reward("lab-trio"), load_reward("lab"), held_out_trios(40, seed=4)
    images = draw_trios(trios, seed=4)
    truth = reward.score(images, [trio.caption for trio in trios])
    parts = [plain.score(images, [trio.clauses[part].caption for trio in trios]) for part in (0, 1)]
    torch.testing.assert_close(truth, (parts[0] + parts[1]) / 2)
    negatives = [wrong(trio) for trio in trios]
    hits = [truth > reward.score(images, [changed[way].caption for changed in negatives]) for way in range(5)]
    assert torch.stack(hits).float().mean() >= 0.95
    two = [trio.clauses[0].caption for trio in trios]
    torch.testing.assert_close(reward.score(images, two), parts[0])
    assert reward.flops_per_image < 1.3 * plain.flops_per_image, "the image is encoded once"


def test_the_reward_of_two_things_refuses_three() -> None:
    for name in ("lab", "lab-noise-aware"):
        with pytest.raises(InputError, match="take lab-trio"):
            load_reward(name).score(torch.zeros(2, 3, 64, 64), [CAPTION, CAPTION])


def test_the_noise_aware_reward_reads_clauses() -> None:
    aware = load_reward("lab-trio-noise-aware")
    assert isinstance(aware, NoiseAwareReward)
    assert aware.flops_per_image < 1.3 * load_reward("lab").flops_per_image
    trios = held_out_trios(4, seed=5)
    images = draw_trios(trios, seed=5)
    found = aware.score_estimates(images, [trio.caption for trio in trios], -2.0)
    parts = [aware.score_estimates(images, [trio.clauses[part].caption for trio in trios], -2.0) for part in (0, 1)]
    torch.testing.assert_close(found, (parts[0] + parts[1]) / 2)


def test_the_shipped_model_is_small_and_seldom_right() -> None:
    pipe, whole = load_pipeline(assets.TRIO), load_pipeline("lab-clean")
    assert without_blocks(whole.unet).state_dict().keys() == pipe.unet.state_dict().keys()
    trios = [trio.caption for trio in held_out_trios(8, seed=6) for _ in range(3)]
    images = measure.generate(pipe, trios, list(range(3)) * 8)
    judged = [judge.check(image, caption) for image, caption in zip(images, trios, strict=True)]
    assert np.mean([said.correct for said in judged]) < 0.25
    assert np.mean([said.background for said in judged]) > 0.9
    assert np.mean([said.subject for said in judged]) > 0.25


def test_its_sampler_begins_later_on_the_same_law() -> None:
    whole, cut = (load_pipeline(name).scheduler for name in ("lab-clean", assets.TRIO))
    torch.testing.assert_close(cut.alphas_cumprod, whole.alphas_cumprod[:FIRST_LEVEL])
    torch.testing.assert_close(from_level(whole, FIRST_LEVEL).alphas_cumprod, cut.alphas_cumprod)
    cut.set_timesteps(20)
    first = cut.alphas_cumprod[cut.timesteps[0]]
    assert float((1 / first - 1).sqrt()) == pytest.approx(8.0, rel=0.1)  # noise over signal


@torch.no_grad()
def distance(pipe, unet, examples) -> float:
    """Mean squared error of the predicted velocity on noisy trios."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(examples.latents.shape, generator=generator)
    timesteps = torch.randint(FIRST_LEVEL, (len(noise),), generator=generator)
    words = pipe.text_encoder(examples.ids)[0]
    found: Tensor = unet(pipe.scheduler.add_noise(examples.latents, noise, timesteps), timesteps, words).sample
    return float((found - pipe.scheduler.get_velocity(examples.latents, noise, timesteps)).square().mean())


def test_a_killed_training_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch) -> None:
    teacher = load_pipeline("lab-clean")
    whole = train_trio(tmp_path / "whole", teacher, steps=4, n=16)
    saved = loop._Trainer.save

    def killed(trainer, path, step):
        saved(trainer, path, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop._Trainer, "save", killed)
    monkeypatch.setattr(loop.train, "__kwdefaults__", {**loop.train.__kwdefaults__, "save_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train_trio(tmp_path / "cut", teacher, steps=4, n=16)
    resumed = train_trio(tmp_path / "cut", teacher, steps=4, n=16)
    for part in ("unet", "text_encoder"):
        other = getattr(resumed, part).state_dict()
        assert all(torch.equal(weight, other[name]) for name, weight in getattr(whole, part).state_dict().items())
    examples = trio_examples(teacher, 16, seed=1, cache=tmp_path / "whole" / "trios.safetensors")
    assert distance(whole, whole.unet, examples) < distance(teacher, without_blocks(teacher.unet), examples)
