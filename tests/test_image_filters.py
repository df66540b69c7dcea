"""Safety checker and watermark: off where images are measured, as in the stock pipeline where they are handed out."""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_index_search import book
from test_strategies import Brightness
from tiny import tiny_checker, tiny_pipeline
from tiny_families import family_pipeline

from diffkit.errors import InputError
from diffkit.image_filters import FLAGGED, unfiltered
from diffkit.seeds import generators
from memorization.generation import Sampling, generate
from memorization.text_embeddings import empty_text, encoded
from ttsnap import TTSnapPipeline
from ttsnap.cli.generate_run import generate as generate_run
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.index import IndexSearch
from ttsnap.search.strategies.rounds import Rounds

PROMPT, SEEDS = "a dog", range(8)
OPTIONS = {"num_inference_steps": 6, "guidance_scale": 3.0}
NAMES = ["halving", "zero-order", "random", "fk", "rounds", "index", "adaptive"]
SOME, MORE, ALL = -0.465, -0.44, -2.0  # thresholds of the checker: which images it flags


class Bright(Brightness):
    """Refuses black images: a checker's verdict is not to be scored."""

    def score(self, images, prompts):
        assert (images.amax((1, 2, 3)) > 0).all(), "a black image was scored"
        return super().score(images, prompts)


def checked(threshold: float):
    pipe = tiny_pipeline("euler-ancestral")
    pipe.register_modules(**tiny_checker(threshold))
    return pipe


@functools.cache
def stock(threshold: float):
    """Each seed's image as the stock pipeline hands it out, and whether it flags it."""
    pipe = checked(threshold)
    made = [pipe(PROMPT, **OPTIONS, generator=generators([seed])[0]) for seed in SEEDS]
    return [np.asarray(out.images[0]) for out in made], [out.nsfw_content_detected[0] for out in made]


def search(threshold: float, **options):
    pipe = TTSnapPipeline.from_pipe(checked(threshold), reward=Bright())
    return pipe(PROMPT, **OPTIONS, **{"seeds": SEEDS, "num_candidates": 8, "micro_batch": 1, **options})


def test_the_best_image_that_is_not_flagged_wins_and_is_the_stock_image():
    images, flags = stock(SOME)
    assert 0 < sum(flags) < len(flags)
    out = search(SOME, num_images_per_prompt=2, previews=True)
    clean = sorted((seed for seed in SEEDS if not flags[seed]), key=lambda seed: -images[seed].mean())
    assert out.seeds == clean[:2]
    assert out.nsfw_content_detected == [False, False]
    assert all((np.asarray(image) == images[seed]).all() for image, seed in zip(out.images, out.seeds, strict=True))
    assert out.trace[-1].reasons == {seed: FLAGGED for seed in SEEDS if flags[seed]}
    assert None not in out.trace[-1].scores
    assert [preview.getextrema()[0] == (0, 0) for preview in out.trace[-1].previews] == flags


def test_pictures_of_a_flagged_candidate_are_black_in_every_look():
    out = search(ALL, num_candidates=2, seeds=(1, 2), schedule="2:1.0", previews=True)
    assert all(picture.getextrema()[0] == (0, 0) for look in out.trace for picture in look.previews)


def test_where_all_are_flagged_the_best_is_black_as_in_the_stock_pipeline():
    images, flags = stock(ALL)
    bare = TTSnapPipeline.from_pipe(tiny_pipeline("euler-ancestral"), reward=Bright())
    best = bare(PROMPT, **OPTIONS, seeds=SEEDS, num_candidates=8, micro_batch=1)
    out = search(ALL)
    assert all(flags)
    assert out.nsfw_content_detected == [True]
    assert best.nsfw_content_detected is None
    assert (np.asarray(out.images[0]) == images[out.seeds[0]]).all()
    assert not np.asarray(out.images[0]).any()
    assert (out.seeds, out.rewards) == (best.seeds, best.rewards)


@pytest.mark.parametrize(
    "strategy",
    ["halving", "zero-order", "random", "fk", Rounds(6.7, 2), IndexSearch(book()), AdaptiveSearch(book())],
    ids=NAMES,
)
def test_no_strategy_takes_a_flagged_image_before_another(strategy):
    options = {"seeds": None, "num_candidates": None, "micro_batch": 4, "budget": "8x", "search": strategy}
    some, every = search(MORE, seed=1, **options), search(ALL, seed=1, **options)
    last = [look for look in some.trace if look.step == 5]
    scores = {
        score: index in look.reasons
        for look in last
        for index, score in zip(look.candidates, look.scores, strict=False)
    }
    assert some.nsfw_content_detected == [False]
    assert any(scores.values())
    assert some.rewards[0] == max(score for score, flagged in scores.items() if not flagged)
    assert every.nsfw_content_detected == [True]


def test_a_flagged_winner_is_replaced_by_candidates_that_looks_had_dropped():
    """The reward prefers flagged images at the look, so that only such ones reach the end."""
    flags = stock(SOME)[1]
    order = [*(seed for seed in SEEDS if flags[seed]), flags.index(False)]
    keep = f"1:{1.01 / len(order):.3f}"

    def judge(taken, prompts):
        return torch.arange(len(taken), 0, -1).float()  # in the order of the seeds

    options = {"seeds": order, "num_candidates": len(order), "micro_batch": 1, "reward": judge}
    out = search(SOME, **{**options, "micro_batch": len(order)}, schedule=keep)
    assert out.nsfw_content_detected == [False]
    assert out.seeds == order[-1:]
    last = out.trace[-1]
    assert [last.candidates[at] for at in range(len(order) - 1)] == sorted(last.reasons)
    assert last.survivors == [len(order) - 1]
    assert out.ledger.calls == len(order) * OPTIONS["num_inference_steps"]
    assert out.spent[0].calls == out.ledger.calls
    assert out.ledger.decoded == 2 * len(order)


def test_replacing_flagged_winners_ends_when_nothing_is_left_or_the_budget_is_spent():
    every = search(ALL, num_candidates=3, seeds=(1, 2, 3), schedule="2:0.34")
    assert every.nsfw_content_detected == [True]
    assert every.ledger.calls == 3 * OPTIONS["num_inference_steps"]
    budget = {"seeds": None, "num_candidates": None, "seed": 1, "schedule": "2:0.34"}
    for amount in ("2x", "3x", "4.3x"):
        paid = search(ALL, **budget, budget=amount)
        assert paid.ledger.budget["unspent"] >= 0


def test_latents_are_not_checked_as_in_the_stock_pipeline():
    out = search(ALL, output_type="latent")
    assert out.nsfw_content_detected is None
    assert not out.trace[-1].reasons


def test_a_checker_that_cannot_see_is_refused():
    pipe = checked(ALL)
    pipe.feature_extractor = None
    with pytest.raises(InputError, match="safety checker but no feature extractor"):
        TTSnapPipeline.from_pipe(pipe, reward=Bright())(PROMPT, **OPTIONS)


def test_measured_images_are_not_blackened_and_the_checker_stays_on_the_pipeline(tmp_path):
    pipe, bare = checked(ALL), tiny_pipeline("euler-ancestral")
    checker, config = pipe.safety_checker, dict(pipe.config)
    rows = [(one, encoded(one, [PROMPT]), empty_text(one)) for one in (pipe, bare)]
    made, expected = (generate(*row, [3], sampling=Sampling(6, 3.0, 1)).images for row in rows)
    assert torch.equal(made, expected)
    assert made.amax() > 0
    with pytest.raises(RuntimeError), unfiltered(pipe):
        assert pipe.safety_checker is None
        raise RuntimeError
    assert pipe.safety_checker is checker
    assert dict(pipe.config) == config


class Stamp(SimpleNamespace):
    """A watermark that shows whether it was put on values that were clipped before."""

    def apply_watermark(self, images):
        return 0.5 * images.float() + 0.1


@pytest.mark.parametrize("output_type", ["pil", "pt"])
def test_winners_carry_the_stock_watermark(output_type):
    pipe = family_pipeline("sdxl")
    pipe.watermark = Stamp()
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": output_type}
    out = TTSnapPipeline.from_pipe(pipe, reward=Bright())(PROMPT, seeds=[1], num_candidates=1, **options)
    [image] = pipe(PROMPT, generator=generators([1])[0], **options).images
    assert (np.asarray(out.images[0]) == np.asarray(image)).all()


def test_a_run_says_which_candidates_were_flagged(tmp_path):
    config = {"steps": 6, "guidance": 3.0, "negative": None, "winners": 1, "seed": 1, "candidates": 8, "budget": None,
              "schedule": "", "micro_batch": 1, "sha256": None}  # fmt: skip
    for name, threshold in (("some", SOME), ("all", ALL)):
        pipe = TTSnapPipeline.from_pipe(checked(threshold), reward=Bright())
        generate_run(pipe, [PROMPT], config, tmp_path / name)
    some, every = (json.loads((tmp_path / n / "summary.json").read_text())["items"][0] for n in ("some", "all"))
    assert 0 < some["flagged"] < 8
    assert some["winners"][0]["flagged"] is False
    assert every["flagged"] == 8
    assert every["winners"][0]["flagged"] is True
    assert every["winners"][0]["reward"] > 0
    assert FLAGGED in every["trace"][-1]["reasons"].values()
