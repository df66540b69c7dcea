"""What is not finite is dropped with its reason, is never scored or compared, and never handed out."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from test_index_search import book
from test_strategies import Brightness
from tiny import tiny_pipeline

from diffkit.errors import InputError, ScoringError
from diffkit.finite import NOT_FINITE, finite_rows
from diffkit.latents import decode_latents
from diffkit.rewards.base import as_reward, score_checked
from diffkit.suspects import Suspect
from memorization.copies.finite import finite_similarity
from memorization.generation import Sampling
from memorization.mitigation.adversarial.surrogates import Acceptance, make_surrogates
from memorization.mitigation.wanda_method import WandaSettings, _references
from ttsnap import CollectSettings, TTSnapPipeline, collect
from ttsnap.noise_aware.data import finals, usable
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.index import IndexSearch
from ttsnap.search.strategies.rounds import Rounds
from ttsnap.trajectories.rescore import rescore

NAMES = ["halving", "zero-order", "random", "fk", "rounds", "index", "adaptive"]
OPTIONS = {"num_inference_steps": 6, "guidance_scale": 3.0}


class Darkness(Brightness):
    """On 8-bit pictures, where what is not a number is black: it would like a broken image best."""

    def score(self, images, prompts):
        return 10 - (images * 255).round().nan_to_num(0).to(torch.uint8).float().mean((1, 2, 3)) / 25.5


def overflowing(limit: float, value: float = torch.inf):
    """A pipeline whose decoder overflows on images whose mean exceeds ``limit``, as one in half precision does."""
    pipe = tiny_pipeline("euler-ancestral")

    def overflow(_module, _inputs, output):
        hot = output.mean((1, 2, 3), keepdim=True) > limit
        return torch.where(hot & (output > output.mean()), value, output)

    pipe.vae.decoder.register_forward_hook(overflow)
    return pipe


def search(limit: float, **options):
    pipe = TTSnapPipeline.from_pipe(overflowing(limit), reward=Darkness())
    return pipe("a dog", **OPTIONS, output_type="pt", micro_batch=4, **options)


def test_a_broken_image_is_not_shown_to_the_reward():
    images = torch.rand(3, 3, 8, 8)
    images[0, 0, 0, 0], images[2, 1, 2, 3] = torch.nan, torch.inf
    shown = []
    reward = as_reward(lambda images, prompts: shown.append(prompts) or images.mean((1, 2, 3)))
    values, reasons = score_checked(reward, images, ["a", "b", "c"])
    assert shown == [["b"]]
    assert values.isfinite().tolist() == [False, True, False]
    assert reasons == [NOT_FINITE, None, NOT_FINITE]
    values, reasons = score_checked(reward, images[[0]], ["a"])
    assert len(shown) == 1
    assert reasons == [NOT_FINITE]


def test_an_infinite_value_does_not_pass_for_white():
    pipe = tiny_pipeline()
    latents = torch.randn(3, 4, 16, 16)
    latents[1, 0, 0, 0] = torch.inf  # the tiny autoencoder's tanh would make 3 of it
    assert finite_rows(decode_latents(pipe, latents)).tolist() == [True, False, True]
    assert finite_rows(decode_latents(overflowing(-10.0), latents)).tolist() == [False] * 3


@pytest.mark.parametrize("schedule", ["", "2:0.5,3:0.8"])
def test_a_broken_image_never_wins(schedule):
    out = search(0.7, seeds=range(8), num_candidates=8, schedule=schedule)
    dropped = {index for look in out.trace for index, reason in look.reasons.items() if reason == NOT_FINITE}
    assert 0 < len(dropped) < 8
    assert out.seeds[0] not in dropped
    assert out.images.isfinite().all()


@pytest.mark.parametrize(
    "strategy",
    ["halving", "zero-order", "random", "fk", Rounds(9.0, 2), IndexSearch(book()), AdaptiveSearch(book())],
    ids=NAMES,
)
def test_no_strategy_takes_a_broken_image(strategy):
    out = search(0.7, seed=1, budget="8x", search=strategy)
    assert any(NOT_FINITE in look.reasons.values() for look in out.trace)
    assert out.images.isfinite().all()
    assert out.rewards[0] == max(
        score for look in out.trace if look.step == 5 for score in look.scores if score is not None
    )
    with pytest.raises(ScoringError):
        search(-10.0, seed=1, budget="8x", search=strategy)


def test_where_all_are_broken_one_sentence_says_what_to_do():
    with pytest.raises(ScoringError, match="Only 0 of 4 candidates.*not finite.*--dtype float32 and a new --out"):
        search(-10.0, seeds=range(4), num_candidates=4)


class EightBit:
    """A copy detector of 8-bit pictures: black resembles black."""

    name, preprocessing, threshold = "eight-bit", "none", 0.5

    def similarity(self, images, references):
        first, second = ((each * 255).nan_to_num(0).round().flatten(1) for each in (images, references))
        return 1 - torch.cdist(first, second, p=1) / (255 * first.shape[1])


def test_similarity_of_a_broken_image_is_unknown():
    images, references = torch.rand(3, 3, 8, 8), torch.rand(2, 3, 8, 8)
    whole = EightBit().similarity(images, references)
    assert torch.equal(finite_similarity(EightBit(), images, references), whole)
    images[1, 0], references[0, 2, 3, 3] = torch.nan, -torch.inf
    table = finite_similarity(EightBit(), images, references)
    assert table.isnan().tolist() == [[True, False], [True, True], [True, False]]
    assert torch.equal(table[[0, 2], 1], whole[[0, 2], 1])
    assert finite_similarity(EightBit(), images[[1]], references).isnan().all()


def test_mitigations_refuse_to_learn_from_broken_images(tmp_path):
    pipe, suspect = overflowing(-10.0, torch.nan), Suspect("cat", "a cat", ())
    with pytest.raises(InputError, match=r"3 of 3 images of the caption of 'cat' cannot be used: .*float32"):
        _references(pipe, suspect, WandaSettings(steps=2, timesteps=1))
    accept = Acceptance(EightBit(), torch.rand(1, 3, 64, 64), 0.5)
    made = make_surrogates(
        pipe, [suspect], lambda strength: nullcontext(), accept, n=2, sampling=Sampling(2, 3.0, 2), seed=0
    )
    with pytest.raises(InputError, match="2 of 2 images of the pruned model for 'a cat' cannot be used"):
        next(made)


def test_recorded_estimates_that_were_broken_are_neither_rescored_nor_trained_on(tmp_path):
    settings = CollectSettings(candidates=8, num_inference_steps=6, micro_batch=8)
    trajectories = collect(overflowing(0.7), ["a dog"], {"dark": Darkness()}, settings, out=tmp_path / "run")
    looks, finals_of = trajectories.reward_tensor("dark").looks[0], trajectories.reward_tensor("dark").final[0]
    broken = np.isnan(looks)
    assert 0 < np.isnan(finals_of).sum() < 8
    assert broken.any()
    assert (trajectories[0].previews[torch.from_numpy(broken)] == 0).all()
    again = rescore(trajectories, "dark", Darkness())
    assert (np.isnan(again.looks[0]) == broken).all()
    whole = usable(trajectories, finals(trajectories, "dark"), (0, 1))
    assert whole[0].tolist() == (np.isfinite(finals_of) & ~broken[:, :2].any(1)).tolist()
