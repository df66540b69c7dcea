"""Where a call's noise comes from: with one candidate the stock pipeline's images, else seeds that are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline
from tiny_families import family_pipeline
from tiny_search import brightness
from tiny_videos import video_pipeline

from diffkit.errors import InputError
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline
from ttsnap.search.noise import Noise

PROMPT, OPTIONS = "a dog", {"num_inference_steps": 4, "guidance_scale": 3.0}


def search_pipe(scheduler: str = "ddim") -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline(scheduler), reward=brightness)


def generator(seed: int, drawn: int = 0) -> torch.Generator:
    """One that has drawn some numbers already, as a user's may have."""
    fresh = torch.Generator().manual_seed(seed)
    torch.randn(drawn, generator=fresh)
    return fresh


def pixels(images) -> list[list[int]]:
    return [np.asarray(image).astype(int).tolist() for image in images]


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "dpm-sde"])
@pytest.mark.parametrize("schedule", ["", "1:0.5"])
@pytest.mark.parametrize("drawn", [0, 7])
def test_one_candidate_of_a_generator_is_the_stock_image(scheduler, schedule, drawn):
    """And the generator is left where the stock pipeline leaves it, so that a second call is the stock's second."""
    stock, pipe = tiny_pipeline(scheduler), search_pipe(scheduler)
    theirs, ours = generator(3, drawn), generator(3, drawn)
    for call in range(2):
        expected = stock(PROMPT, **OPTIONS, generator=theirs).images
        out = pipe(PROMPT, **OPTIONS, generator=ours, num_candidates=1, schedule=schedule)
        assert pixels(out.images) == pixels(expected)
        assert torch.equal(ours.get_state(), theirs.get_state())
        assert out.seeds == [None if drawn or call else 3]


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral"])
@pytest.mark.parametrize("listed", [False, True])
def test_one_candidate_of_each_prompt_is_the_stock_batch(scheduler, listed):
    def noise():
        return [generator(3), generator(4, 5), generator(5)] if listed else generator(3, 5)

    prompts, theirs, ours = [PROMPT, "cat", "at"], noise(), noise()
    expected = tiny_pipeline(scheduler)(prompts, **OPTIONS, generator=theirs).images
    out = search_pipe(scheduler)(prompts, **OPTIONS, generator=ours, num_candidates=1, schedule="1:0.5")
    assert np.abs(np.subtract(pixels(out.images), pixels(expected))).max() <= 1
    for own, stock in zip(ours if listed else [ours], theirs if listed else [theirs], strict=True):
        assert torch.equal(own.get_state(), stock.get_state())


def test_a_generator_for_each_prompt_draws_its_candidates():
    pipe, options = search_pipe(), {**OPTIONS, "schedule": "", "num_candidates": 3}
    out = pipe([PROMPT, "cat"], **options, generator=[generator(0), generator(1)])
    assert [len(look.candidates) for look in out.trace] == [3, 3]
    alone = [pipe(prompt, **options, generator=generator(at)) for at, prompt in enumerate([PROMPT, "cat"])]
    assert out.seeds == [each.seeds[0] for each in alone]
    assert [look.seeds for look in out.trace] == [each.trace[0].seeds for each in alone]
    assert all(float(seed) == seed < 2**53 for look in out.trace for seed in look.seeds)
    default = pipe([PROMPT, "cat"], **OPTIONS, generator=[generator(0), generator(1)], budget="2x")
    assert [look.seeds for look in default.trace] == [look.seeds[:2] for look in out.trace]


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_budget_for_one_image_each_draws_a_seed_for_each_prompt(micro_batch):
    """Its number of candidates is found after the search has begun, too late to draw as a stock batch does."""
    prompts, source = [PROMPT, "cat", "at"], generator(7)
    out = search_pipe()(prompts, **OPTIONS, generator=source, budget="1x", micro_batch=micro_batch)
    assert len(set(out.seeds)) == 3
    expected = [tiny_pipeline()(PROMPT, **OPTIONS, generator=generator(seed)).images[0] for seed in out.seeds[:1]]
    assert np.abs(np.subtract(pixels(out.images[:1]), pixels(expected))).max() <= 1
    again = generator(7)
    torch.randint(2**53, (3,), generator=again)
    assert torch.equal(source.get_state(), again.get_state())


@pytest.mark.parametrize(
    ("build", "name", "prompts"),
    [(family_pipeline, "cogview4", ["a dog", "a dog " * 12]), (video_pipeline, "ltx", ["a dog", "cat"])],
)
def test_what_is_denoised_or_decoded_apart_cannot_draw_from_one_generator(build, name, prompts):
    pipe = TTSnapPipeline.from_pipe(build(name), reward=lambda images, texts: [0.0] * len(texts))
    with pytest.raises(InputError, match="of different encoded lengths, .* give a list with one generator"):
        pipe(prompts, num_inference_steps=2, height=32, width=32, generator=generator(7), num_candidates=1)


def test_seeds_of_numpy_and_torch_are_plain_integers():
    pipe = search_pipe()
    expected = pipe(PROMPT, **OPTIONS, seeds=[0, 1, 2]).trace
    for seeds in (range(3), np.arange(3), torch.arange(3), [np.int64(0), np.uint8(1), 2]):
        trace = pipe(PROMPT, **OPTIONS, seeds=seeds).trace
        assert trace == expected
        assert [type(seed) for seed in trace[0].seeds] == [int] * 3
    few = {name: np.int64(value) for name, value in {"num_candidates": 2, "micro_batch": 1, "seed": 3}.items()}
    out = pipe(PROMPT, guidance_scale=3.0, num_inference_steps=np.int32(4), **few)
    assert out.seeds == pipe(PROMPT, **OPTIONS, num_candidates=2, micro_batch=1, seed=3).seeds


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": 5}, r"seeds must be a list of integers such as \[5\]"),
        ({"seeds": "12"}, r"seeds\[0\] must be an integer"),
        ({"seeds": np.zeros(0, dtype=int)}, "non-empty list"),
        ({"seeds": [1.0]}, r"seeds\[0\] must be an integer"),
        ({"seeds": np.array([True])}, r"seeds\[0\] must be an integer"),
        ({"generator": 3}, "must be a torch.Generator, or a list"),
        ({"generator": [generator(0)] * 4}, "the same torch.Generator twice"),
        ({"generator": generators([0, 1, 2])}, "one for each of the 2 prompts"),
        ({"generator": generator(0), "num_candidates": 1, "micro_batch": 1}, "leave out micro_batch and share"),
        ({"generator": generator(0), "num_candidates": 1, "share": True}, "leave out micro_batch and share"),
        ({"generator": generators([0, 1]), "num_candidates": 0}, "num_candidates must be"),
        ({"height": 96}, "ignores a height or width that stands alone; give both"),
        ({"width": 96}, "give both"),
    ],
)
def test_what_means_something_else_is_refused(options, sentence):
    with pytest.raises(InputError, match=sentence):
        search_pipe()([PROMPT, "cat"], **{**OPTIONS, **options})


def test_height_alone_is_the_stock_pipelines_where_it_takes_it():
    pipe = family_pipeline("sdxl")
    options = {**OPTIONS, "num_inference_steps": 2, "height": 96}
    out = TTSnapPipeline.from_pipe(pipe, reward=brightness)(PROMPT, **options, seeds=[3])
    expected = pipe(PROMPT, **options, generator=generator(3)).images
    assert (out.images[0].size, pixels(out.images)) == ((64, 96), pixels(expected))


def test_a_list_with_one_for_each_candidate_is_left_as_it_was():
    listed = generators([3, 4, 5, 6])
    drawn = [candidate.seed for candidate in Noise(listed).candidates(2, 2)]
    assert (drawn, Noise(listed).fixed_count(2), Noise(listed).fixed_count(4)) == ([3, 4, 5, 6], 2, None)
