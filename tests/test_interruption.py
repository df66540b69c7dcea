"""A stop, ``pipe._interrupt = True``: what was finished comes back, the ledger is true, no image is not the stock's."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_families import call_options
from test_index_search import book
from test_strategies import Brightness
from tiny import tiny_pipeline
from tiny_search import shared_family

from diffkit.conditioning import encode_prompts
from diffkit.errors import ScoringError
from diffkit.interruption import DenoisingInterrupted
from diffkit.lookahead import look_ahead
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from memorization.generation import Sampling, generate, generated_latents
from memorization.text_embeddings import empty_text
from ttsnap import TTSnapPipeline, collect
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.index import IndexSearch
from ttsnap.search.strategies.rounds import Rounds
from ttsnap.trajectories.recorder import CollectSettings

K = {"num_inference_steps": 6, "guidance_scale": 3.0}
SEARCH = {**K, "num_candidates": 3, "schedule": "1:0.7", "seed": 1, "micro_batch": 1}  # calls: 3 x 2, then 2 x 4
CALLS = 14


@functools.cache
def searcher(scheduler: str = "euler") -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline(scheduler), reward=Brightness())


@functools.cache
def stock_image(seed: int, scheduler: str = "euler") -> np.ndarray:
    return np.asarray(tiny_pipeline(scheduler)("a dog", generator=generators([seed])[0], **K).images[0])


def stopped(pipe: Any, call: int, prompt: Any = "a dog", **options: Any) -> tuple[Any, int]:
    """What a search returns that is stopped in a call of the denoiser, counted from 1, and how many ran."""
    heard: list[int] = []

    def stop(module: Any, inputs: Any, output: Any) -> None:
        heard.append(1)
        if len(heard) == call:
            pipe._interrupt = True

    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    hook = denoiser.register_forward_hook(stop)
    try:
        return pipe(prompt, **options), len(heard)
    finally:
        hook.remove()


def check_images(out: Any, scheduler: str = "euler") -> None:
    """Each image that is there is the stock pipeline's, and is scored; others have no score."""
    for image, seed, reward, recipe in zip(out.images, out.seeds, out.rewards, out.recipes, strict=True):
        assert (image is None) == math.isnan(reward)
        if image is not None and recipe is None:
            assert np.array_equal(np.asarray(image), stock_image(seed, scheduler))


@pytest.mark.parametrize("call", [1, 4, 6, 9, 10, 11, CALLS])
def test_a_stop_in_any_call_ends_the_search(call):
    whole = searcher()("a dog", **SEARCH)
    out, heard = stopped(searcher(), call, **SEARCH)
    check_images(out)
    assert out.interrupted == (call < CALLS)
    assert heard == out.ledger.calls == out.spent[0].calls == call
    if call < 10:  # nothing is finished: the best of the last look, or the first
        looked = whole.trace[0]
        best = looked.seeds[int(np.argmax(looked.scores))]
        assert (out.images, out.seeds) == ([None], [looked.seeds[0] if call <= 6 else best])
    elif call < CALLS:
        assert out.images[0] is not None
        assert out.trace[-1].survivors == out.trace[-1].candidates
    else:
        assert (out.seeds, out.rewards) == (whole.seeds, whole.rewards)


def test_a_stop_while_a_look_is_scored_is_not_lost():
    pipe = searcher()

    def stop(images, prompts):
        pipe._interrupt = len(images) == 1  # not when the reward is tried
        return images.mean((1, 2, 3))

    out = pipe("a dog", **SEARCH, reward=stop)
    assert (out.interrupted, out.ledger.calls, out.images) == (True, 6, [None])
    again = pipe("a dog", **SEARCH)
    assert (again.interrupted, again.ledger.calls) == (False, CALLS)


def test_a_stop_from_before_counts_no_more_than_in_the_stock_pipeline():
    pipe = searcher()
    pipe._interrupt = True
    assert not pipe("a dog", **SEARCH).interrupted


STRATEGIES = {
    "best-of-n": {"num_candidates": 4, "schedule": "", "seed": 1},
    "lookahead": {"search": "lookahead", "num_candidates": 4, "budget": None, "seed": 1, "schedule": "1:0.5+2"},
    "halving": {"search": "halving"},
    "zero-order": {"search": "zero-order"},
    "random": {"search": "random"},
    "fk": {"search": "fk"},
    "rounds": {"search": Rounds(100.0, 2)},
    "index": {"search": IndexSearch(book())},
    "adaptive": {"search": AdaptiveSearch(book())},
    "seconds": {"budget": "1000s", "num_images_per_prompt": 2},
}


@pytest.mark.parametrize("call", [21])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_search_can_be_stopped(name, call):
    options = {**K, "micro_batch": 2, "seed": 1, "budget": "6x", **STRATEGIES[name]}
    if name in ("best-of-n", "lookahead"):
        del options["budget"]
        options.pop("search", None)
    out, heard = stopped(searcher("euler-ancestral"), call, ["a dog", "a cat"], **options)
    rows = out.ledger.calls + out.ledger.padding_calls + out.ledger.calibration_calls
    assert heard <= rows <= 2 * heard or name == "seconds"
    assert sum(cost.calls for cost in out.spent) == out.ledger.calls
    assert out.interrupted or heard < call
    assert len(out.images) == 2 * options.get("num_images_per_prompt", 1)
    for image, reward in zip(out.images, out.rewards, strict=True):
        assert (image is None) == math.isnan(reward)


@pytest.mark.parametrize("name", ["rounds", "random", "zero-order"])
def test_a_stopped_search_with_fewer_scored_images_than_asked_for_is_no_error(name):
    def first(images, prompts):
        scores = images.mean((1, 2, 3))
        seen[0] += len(images)
        return scores if seen[0] <= 3 else scores * math.nan  # two images are tried before the search

    options = {**K, "micro_batch": 1, "seed": 1, "budget": "8x", "num_images_per_prompt": 2, **STRATEGIES[name]}
    seen = [0]
    out, _ = stopped(searcher(), 40, "a dog", **options, reward=first)
    assert out.interrupted
    assert [math.isnan(reward) for reward in out.rewards] == [False, True]
    assert out.images[1] is None
    seen = [0]
    with pytest.raises(ScoringError, match="Only 1 of 8 candidates"):
        searcher()("a dog", **options, reward=first)


@pytest.mark.parametrize("output_type", ["np", "pt", "latent"])
def test_missing_images_are_nan_in_arrays(output_type):
    options = {**SEARCH, "num_images_per_prompt": 2, "output_type": output_type}
    whole = searcher()("a dog", **options)
    for call, finished in ((3, 0), (11, 1)):
        out, _ = stopped(searcher(), call, **options)
        images = torch.as_tensor(out.images)
        assert images.shape == whole.images.shape
        assert images.isnan().flatten(1).all(1).tolist() == [row >= finished for row in range(2)]
        assert None not in out.seeds


@pytest.mark.parametrize("name", ["sdxl", "flux", "pixart-sigma"])
def test_every_family_can_be_stopped(name):
    """PixArt has no such switch in its loop: there a stop ends the search at the end of a micro-batch."""
    stock = shared_family(name)
    pipe = TTSnapPipeline.from_pipe(stock, reward=Brightness())
    options = {**call_options(name), "num_candidates": 3, "schedule": "0:0.7", "seed": 5, "micro_batch": 1}
    whole, heard = stopped(pipe, 0, **options)
    per_call, steps = heard // whole.ledger.calls, (whole.ledger.calls - 1) // 2
    call = 4 if name == "pixart-sigma" else 3 + steps  # 3 calls, then one of two survivors is finished
    out, heard = stopped(pipe, per_call * call, **options)
    assert heard == per_call * out.ledger.calls
    assert out.interrupted
    assert out.ledger.calls < whole.ledger.calls
    reference = stock("a dog", **call_options(name), generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(reference))


def test_segments_looks_ahead_and_recordings_of_a_stock_pipeline_say_that_they_were_stopped(tmp_path):
    pipe = tiny_pipeline("dpm++")
    conditioning, denoising = encode_prompts(pipe, ["a dog"]), Denoising(6, 3.0, micro_batch=1)
    fresh = [Candidate(index, 0, source) for index, source in enumerate(generators([1, 2]))]
    begun = run_segment(pipe, fresh, conditioning, denoising, 0, 2)

    def stop(module: Any, inputs: Any, output: Any) -> None:
        pipe._interrupt = True

    hook = pipe.unet.register_forward_hook(stop)
    for work in (
        lambda: run_segment(pipe, fresh, conditioning, denoising, 0, 2),
        lambda: run_segment(pipe, fresh, conditioning, denoising, 0, 1),
        lambda: look_ahead(pipe, begun, conditioning, denoising, 2),
        lambda: collect(pipe, ["a dog"], Brightness(), CollectSettings(2, 4), out=tmp_path / "run"),
        lambda: generate(pipe, empty_text(pipe), empty_text(pipe), [1], sampling=Sampling(3, 3.0, 1)),
        lambda: generated_latents(pipe, {"prompt": "a dog", **K}, 3),
    ):
        with pytest.raises(DenoisingInterrupted, match=r"_interrupt = True"):
            work()
    hook.remove()
    assert generated_latents(pipe, {"prompt": "a dog", **K}, 3).isfinite().all()
    [again, _] = run_segment(pipe, fresh, conditioning, denoising, 0, 2)
    assert torch.equal(again.latents, begun[0].latents)
