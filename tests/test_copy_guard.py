"""Copy guard: what copies a forbidden picture never wins, at a counted cost; everything else is as without it."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
import torch
from test_image_filters import NAMES, OPTIONS, PROMPT, SEEDS
from test_index_search import book
from test_strategies import Brightness
from tiny import tiny_pipeline

from diffkit.copy_guard import CopyCheck, is_guarded, load_copy_guard
from diffkit.errors import InputError, ScoringError
from diffkit.images import load_image, save_png
from diffkit.lab.assets import photographs_path
from diffkit.seeds import generators
from memorization import load_copy_detector
from memorization.copies.calibrate import blur, crop
from memorization.copies.guard import SimilarityGuard
from ttsnap import TTSnapPipeline
from ttsnap.cli.generate_run import generate as generate_run
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.index import IndexSearch
from ttsnap.search.strategies.rounds import Rounds
from ttsnap.search.trace import Look

BRIGHTEST, SECOND = 4, 5


class Light:
    """Forbids bright images, by a rule that the tests can work out for themselves."""

    name, flops_per_image = "light", 1e9

    def __init__(self, most: float) -> None:
        self.most = most

    def check(self, images):
        return [CopyCheck(float(mean), "bright" if mean > self.most else None) for mean in images.mean((1, 2, 3))]

    def card(self):
        return {"name": self.name, "most": self.most}


@functools.cache
def stock():
    """Each seed's image as the stock pipeline makes it, (8, 3, H, W)."""
    pipe = tiny_pipeline("euler-ancestral")
    made = [pipe(PROMPT, **OPTIONS, generator=generators([seed])[0], output_type="np").images[0] for seed in SEEDS]
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


@functools.cache
def bare():
    return TTSnapPipeline.from_pipe(tiny_pipeline("euler-ancestral"), reward=Brightness())


def search(guard=None, **options):
    fixed = {"seeds": SEEDS, "num_candidates": 8, "micro_batch": 1, "output_type": "np"}
    return bare()(PROMPT, **OPTIONS, **{**fixed, "copy_guard": guard, **options})


@pytest.fixture(scope="module")
def forbidden(tmp_path_factory):
    """A folder with the pictures of the two brightest seeds."""
    folder = tmp_path_factory.mktemp("forbidden")
    for seed in (BRIGHTEST, SECOND):
        save_png(stock()[seed], folder / f"seed-{seed}.png")
    return folder


def test_the_best_image_that_is_no_copy_wins_and_is_the_stock_image(forbidden):
    order = sorted(SEEDS, key=lambda seed: -float(stock()[seed].mean()))
    assert order[:2] == [BRIGHTEST, SECOND]
    without, out = search(), search(str(forbidden), num_images_per_prompt=2)
    assert (without.seeds, without.similarities) == ([BRIGHTEST], None)
    assert out.seeds == order[2:4]
    assert (out.images == stock()[order[2:4]].permute(0, 2, 3, 1).numpy()).all()
    [last] = out.trace
    assert {index for index, reason in last.reasons.items() if is_guarded(reason)} == {BRIGHTEST, SECOND}
    reason = rf"copy guard: like seed-{SECOND}\.png: similarity (1\.00|0\.99)\d by tiled, threshold 0\.750"
    assert re.fullmatch(reason, last.reasons[SECOND])
    pictures = torch.stack([load_image(file) for file in sorted(forbidden.glob("*.png"))])
    similarity = load_copy_detector("tiled").similarity(stock(), pictures).amax(1)
    assert last.similarities == pytest.approx(
        similarity.tolist(), abs=0.1
    )  # far from the threshold, the other way round
    assert [last.similarities[seed] for seed in (BRIGHTEST, SECOND)] == pytest.approx(
        [float(similarity[seed]) for seed in (BRIGHTEST, SECOND)], abs=1e-5
    )
    assert out.similarities == [last.similarities[seed] for seed in out.seeds]
    assert max(out.similarities) < load_copy_detector("tiled").threshold


def test_without_a_guard_nothing_is_said_of_one():
    out = search(schedule="2:0.5")
    assert not {"similarities"} & set(out.trace[0].to_dict())
    assert "guard" not in out.ledger.to_dict()
    assert "guard" not in out.ledger.seconds


def test_a_guard_that_forbids_nothing_changes_no_bit_and_is_charged():
    without, out = search(schedule="2:0.5", num_images_per_prompt=2), search(Light(2.0), schedule="2:0.5")
    assert out.seeds == without.seeds[:1]
    assert (out.images == without.images[:1]).all()
    assert [look.scores for look in out.trace] == [look.scores for look in without.trace]
    checks = sum(len(look.candidates) for look in out.trace)
    assert out.ledger.guard == {"checks": checks, "flop_per_check": 1e9}
    assert out.ledger.flops.verify == without.ledger.flops.verify + 1e9
    assert out.ledger.to_dict()["flop"] == without.ledger.to_dict()["flop"] + checks * 1e9
    assert out.ledger.seconds["guard"] > 0


def test_a_budget_pays_for_the_checks():
    """Ten images without their checks, which cost more than an image does, are fewer than five with them."""
    price = search(num_candidates=1, seeds=[1]).ledger.flops
    image = 6 * price.call + price.decode + price.verify
    options = {"seeds": None, "num_candidates": None, "seed": 3, "budget": f"{10.5 * image / 1e9:.6f}GFLOP"}
    free, paid = search(**options).ledger, search(Light(2.0), **options).ledger
    assert (free.verified, paid.verified) == (10, paid.guard["checks"])
    assert paid.verified == int((10.5 * image - 1000) / (image + 1e9)) < 5
    assert paid.budget["spent"] <= paid.budget["limit"]


def test_copies_are_dropped_at_the_looks_and_their_previews_are_black():
    free = search(schedule="2:1.0", previews=True)
    limit = float(np.median([np.asarray(picture).mean() / 255 for picture in free.trace[0].previews]))
    out = search(Light(limit), schedule="2:1.0", previews=True)
    first, last = out.trace
    assert 0 < len(first.reasons) < len(first.candidates)
    assert set(last.candidates) == set(first.candidates) - set(first.reasons)
    assert {index for index, picture in zip(first.candidates, first.previews, strict=True)
            if picture.getextrema()[0] == (0, 0)} >= set(first.reasons)  # fmt: skip
    assert out.ledger.calls == 6 * len(last.candidates) + 3 * len(first.reasons) < free.ledger.calls


@pytest.mark.parametrize(
    "strategy",
    ["halving", "zero-order", "random", "fk", Rounds(6.7, 2), IndexSearch(book()), AdaptiveSearch(book())],
    ids=NAMES,
)
def test_no_strategy_takes_a_copy(strategy):
    options = {"seeds": None, "num_candidates": None, "micro_batch": 4, "seed": 1, "search": strategy}
    price = search(num_candidates=1, seeds=[1]).ledger.flops
    one = (6 * price.call + price.decode + price.verify) / 1e9
    free = search(Light(2.0), budget=f"{8 * (one + 2):.3f}GFLOP", **options)
    finished = [value for look in free.trace if look.step == 5 for value in look.similarities]
    most = max(finished) - 1e-4
    out = search(Light(most), budget=f"{8 * (one + 2):.3f}GFLOP", **options)
    assert free.similarities[0] > most >= out.similarities[0]
    assert any(is_guarded(reason) for look in out.trace for reason in look.reasons.values())
    assert not any(index in look.survivors for look in out.trace for index in look.reasons)


def test_where_all_are_copies_there_is_no_winner_and_one_sentence():
    sentence = "Only 0 of 8 candidates of prompt 0 are left after step 5, 1 needed: the copy guard drops 8 (bright); "
    with pytest.raises(ScoringError, match=re.escape(sentence + "try more candidates, or another prompt.")):
        search(Light(0.0))


def test_an_image_that_cannot_be_compared_may_not_win(forbidden):
    guard = load_copy_guard(forbidden, bare())
    broken = torch.cat([stock()[:1], torch.full((1, *stock().shape[1:]), torch.nan)])
    assert [check.reason is None for check in guard.check(broken)] == [True, False]


def test_the_threshold_is_the_calibrated_one_or_the_given_one(forbidden):
    calibrated = load_copy_guard(forbidden, bare())
    given = load_copy_guard(f"{forbidden}:threshold=0.05:detector=ms-ssim", bare())
    assert isinstance(calibrated, SimilarityGuard)
    assert calibrated.card()["threshold"] >= load_copy_detector("tiled").threshold
    assert calibrated.card()["images"] == calibrated.card()["pictures"] == 2
    assert (given.card()["threshold"], given.card()["source"], given.card()["detector"]) == (0.05, "given", "ms-ssim")
    assert given.check(stock()[:1])[0].reason is not None
    assert calibrated.flops_per_image > 0


def test_two_shots_of_one_picture_do_not_make_the_guard_lax(tmp_path):
    for name, image in (("a", stock()[1]), ("b", stock()[1] * 0.99), ("c", stock()[2])):
        save_png(image, tmp_path / f"{name}.png")
    guard = load_copy_guard(tmp_path, bare())
    assert guard.card()["threshold"] == load_copy_detector("tiled").threshold
    assert guard.card()["images"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "no forbidden pictures: there is no image nowhere"),
        ("{}:nonsense=1", "does not understand option 'nonsense' .* it takes detector=, threshold="),
        ("{}:threshold=high", "a similarity from -1 to 1, got 'high'"),
        ("{}:detector=nonsense", "Unknown copy detector 'nonsense'"),
        ("similarity:nowhere", "no forbidden pictures"),
    ],
)
def test_wrong_guards_are_refused(text, message, forbidden):
    with pytest.raises(InputError, match=message):
        load_copy_guard(text.format(forbidden), bare())


def test_a_run_says_what_was_dropped_and_why(tmp_path, forbidden):
    pipe = TTSnapPipeline.from_pipe(bare(), copy_guard=forbidden)
    config = {
        "prompts": [PROMPT], "model": "tiny", "dtype": "float32", "reward": "brightness", "candidates": 3,
        "budget": None, "schedule": "", "steps": 6, "guidance": 3.0, "negative": None, "winners": 1, "seed": 0,
        "micro_batch": 1, "sha256": {}, "copy_guard": str(forbidden),
    }  # fmt: skip
    [item] = generate_run(pipe, [PROMPT], config, tmp_path)
    assert item["copies"] == 0
    assert item["ledger"]["guard"]["checks"] == 3
    assert len(item["trace"][0]["similarities"]) == 3
    assert item["winners"][0]["similarity"] < pipe.copy_guard.card()["threshold"]


def test_verdicts_are_those_of_the_detector_pair_by_pair():
    """On distorted copies of the lab's photographs and on others; only pairs near the threshold are compared twice."""
    size = (64, 64)
    pictures, others = (
        torch.stack([load_image(file, size) for file in sorted(photographs_path(name).glob("*.png"))[:6]])
        for name in ("planted", "controls")
    )
    detector = load_copy_detector("tiled")
    images = torch.cat([crop(pictures), blur(pictures), others])
    point = {"detector": "tiled", "preprocessing": "", "threshold": detector.threshold, "source": "given"}
    verdicts = SimilarityGuard(pictures, list("abcdef"), detector, point).check(images)
    expected = detector.similarity(images, pictures).amax(1) >= detector.threshold
    assert [check.reason is not None for check in verdicts] == expected.tolist()
    assert 0 < sum(expected.tolist()) < len(images)


def test_looks_of_several_processes_join_with_their_similarities():
    looks = [
        Look([1.0, 3.0], [None, None], {}, [], [False] * 2, similarities=[0.1, 0.3]),
        Look([2.0], [None], {}, [], [False], similarities=[0.2]),
    ]
    joined = Look.joined(looks)
    assert (joined.scores, list(joined.similarities)) == ([1.0, 2.0, 3.0], [0.1, 0.2, 0.3])
