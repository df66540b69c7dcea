"""Pipelines, schedulers and threads: nothing of a search is left on a scheduler, and no thread draws a wrong image."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import diffusers
import numpy as np
import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline

K = {"num_inference_steps": 6, "guidance_scale": 3.0}
SEARCH = {**K, "num_candidates": 4, "schedule": "1:0.5,3:0.5", "micro_batch": 1}


def bright(images, prompts):
    return images.mean((1, 2, 3))


def image(pipe, seed: int) -> np.ndarray:
    return np.asarray(pipe("a dog", generator=generators([seed])[0], **K).images[0])


def in_threads(*calls: Callable[[], object]) -> list[object]:
    """What each call returned or raised."""
    results: list[object] = [None] * len(calls)

    def run(place: int) -> None:
        try:
            results[place] = calls[place]()
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_searches_in_threads_on_one_pipeline_are_each_as_alone():
    stock = tiny_pipeline("euler")
    pipe = TTSnapPipeline.from_pipe(stock, reward=bright)
    before, scheduler = image(stock, 5), pipe.scheduler
    alone = [pipe("a dog", seed=seed, **SEARCH).seeds for seed in range(3)]
    together = in_threads(*(lambda seed=seed: pipe("a dog", seed=seed, **SEARCH) for seed in range(3)))
    assert [out.seeds for out in together] == alone
    assert pipe.scheduler is scheduler
    assert type(scheduler) is diffusers.EulerDiscreteScheduler
    assert np.array_equal(image(stock, 5), before)


def test_stock_calls_beside_a_search_on_a_shared_scheduler_draw_their_own_images():
    """A call of the stock pipeline in the middle of every denoiser call of the search, on the same scheduler object."""
    stock = tiny_pipeline("dpm++")
    search = TTSnapPipeline.from_pipe(stock, reward=bright)
    search.unet = tiny_pipeline().unet
    alone = search("a dog", seed=1, **SEARCH)
    expected, drawn = image(stock, 5), []
    hook = search.unet.register_forward_hook(lambda *_: drawn.extend(in_threads(lambda: image(stock, 5))))
    beside = search("a dog", seed=1, **SEARCH)
    hook.remove()
    assert search.scheduler is stock.scheduler
    assert len(drawn) == alone.ledger.calls
    assert all(np.array_equal(each, expected) for each in drawn)
    assert beside.seeds == alone.seeds
    assert np.array_equal(beside.images[0], alone.images[0])


def test_a_scheduler_taken_from_a_pipeline_in_mid_search_is_refused_meanwhile_and_whole_afterwards():
    stock = tiny_pipeline("euler")
    pipe = TTSnapPipeline.from_pipe(stock, reward=bright)
    expected, taken, errors = image(stock, 5), [], []

    def take(*_: object) -> None:
        if not taken:
            other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
            other.unet, other.scheduler = tiny_pipeline().unet, copy.deepcopy(pipe.scheduler)
            other.set_progress_bar_config(disable=True)
            taken.append(other)
            errors.extend(in_threads(lambda: image(other, 5)))

    hook = pipe.unet.register_forward_hook(take)
    pipe("a dog", seed=1, **SEARCH)
    hook.remove()
    [other], [error] = taken, errors
    assert isinstance(error, InputError)
    assert "search in another thread" in str(error)
    assert np.array_equal(image(other, 5), expected)
    searched = TTSnapPipeline.from_pipe(other, reward=bright)("a dog", seed=1, **SEARCH)
    assert type(other.scheduler) is type(stock.scheduler)
    assert np.array_equal(searched.images[0], image(stock, searched.seeds[0]))


def test_a_search_inside_of_a_denoising_of_its_own_pipeline_is_refused():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline("euler"), reward=bright)
    hook = pipe.unet.register_forward_hook(lambda *_: pipe("cat", seed=1, **SEARCH))
    with pytest.raises(InputError, match="in the middle of a denoising"):
        pipe("a dog", seed=1, **SEARCH)
    hook.remove()
    assert type(pipe.scheduler) is diffusers.EulerDiscreteScheduler
    assert torch.isfinite(torch.tensor(pipe("a dog", seed=1, **SEARCH).rewards)).all()
