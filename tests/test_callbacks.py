"""Callbacks at each look, and at each step of one candidate as in the stock pipeline; progress in a file or a pipe."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline
from tiny_search import brightness, pixels

from diffkit.errors import InputError
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline
from ttsnap.search.progress_lines import search_bar

PROMPT, STEPS = "a dog", 6
OPTIONS = {"num_inference_steps": STEPS, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe() -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)


def test_each_look_is_shown_with_scores_and_pictures(pipe):
    shown = []
    out = pipe(
        [PROMPT, "cat"], **OPTIONS, seed=7, num_candidates=4, schedule="1:0.5,3:0.5", previews=True,
        callback_on_look=lambda own, look: shown.append((own is pipe, len(look.previews), look)),
    )  # fmt: skip
    assert [look for _, _, look in shown] == out.trace
    assert [(own, pictures, look.prompt, look.step) for own, pictures, look in shown] == [
        (True, count, prompt, step) for step, count in ((1, 4), (3, 2), (STEPS - 1, 1)) for prompt in (0, 1)
    ]
    assert all(len(look.scores) == pictures for _, pictures, look in shown)


def test_a_look_may_stop_the_search_with_the_best_seed_so_far(pipe):
    rows, looks = [], []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        out = pipe(
            PROMPT, **OPTIONS, seed=7, num_candidates=4, schedule="1:0.5,3:0.5",
            callback_on_look=lambda own, look: looks.append(look) or look.step < 3,
        )  # fmt: skip
    finally:
        handle.remove()
    assert [look.step for look in looks] == [look.step for look in out.trace] == [1, 3]
    best = max(range(2), key=lambda row: looks[1].scores[row])
    assert out.interrupted
    assert (out.seeds, out.images, math.isnan(out.rewards[0])) == ([looks[1].seeds[best]], [None], True)
    assert out.ledger.denoiser_rows == sum(rows)
    assert out.ledger.calls == 4 * 2 + 2 * 2
    again = pipe(PROMPT, **OPTIONS, seeds=out.seeds)
    assert not again.interrupted
    expected = tiny_pipeline()(PROMPT, **OPTIONS, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(pixels(again.images[0]), pixels(expected))


def test_what_is_finished_is_kept_when_a_look_stops_the_rounds(pipe):
    looks = []
    out = pipe(
        PROMPT, **OPTIONS, seed=7, search="zero-order", budget="8x",
        callback_on_look=lambda own, look: looks.append(look) or False,
    )  # fmt: skip
    assert len(looks) == len(out.trace) == 1
    assert out.interrupted
    assert out.rewards == [max(looks[0].scores)]


@pytest.mark.parametrize("prompts", [PROMPT, [PROMPT, "cat", "at"]])
def test_the_stock_callback_is_called_at_each_step_of_one_candidate(pipe, prompts):
    def halve(called):
        def callback(own, step, timestep, values):
            called.append((step, int(timestep), {name: tuple(value.shape) for name, value in values.items()}))
            own._guidance_scale = 7.0 if step >= 3 else 3.0
            return {"latents": values["latents"] * (0.5 if step == STEPS - 1 else 1.0)}

        return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}

    ours, theirs = [], []
    seeds = [3] if prompts == PROMPT else [3, 4, 5]
    out = pipe(prompts, **OPTIONS, **halve(ours), generator=generators(seeds), num_candidates=1, schedule="")
    stock = tiny_pipeline()
    expected = stock(prompts, **OPTIONS, **halve(theirs), generator=generators(seeds)).images
    plain = pipe(prompts, **OPTIONS, generator=generators(seeds), num_candidates=1)
    assert ours == theirs
    assert len(ours) == STEPS
    for image, reference, other in zip(out.images, expected, plain.images, strict=True):
        assert np.abs(pixels(image) - pixels(reference)).max() <= (0 if prompts == PROMPT else 1)
        assert np.abs(pixels(image) - pixels(other)).max() > 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_candidates": 2},
        {"num_candidates": 1, "schedule": "1:0.5"},
        {"budget": "1x"},
        {"search": "best-of-n", "budget": "1x"},
    ],
)
def test_the_stock_callback_is_refused_in_a_search(pipe, options):
    with pytest.raises(InputError, match="num_candidates=1 and schedule='', or callback_on_look"):
        pipe(PROMPT, **OPTIONS, **options, callback_on_step_end=lambda own, step, timestep, values: values)


def test_progress_in_a_file_is_whole_lines_now_and_then(pipe):
    """A bar writes hundreds of carriage returns; a search that is over at once writes nothing."""
    before, file = pipe._progress_bar_config, io.StringIO()
    try:
        pipe.set_progress_bar_config(file=file)
        pipe(PROMPT, **OPTIONS, seed=7, num_candidates=4)
        assert file.getvalue() == ""
        assert pipe._progress_bar_config == {"file": file}
        pipe.set_progress_bar_config(file=file, mininterval=0)
        with search_bar(pipe, 0) as bar:
            bar.expect(40)
            for _ in range(4):
                bar.advance(10)
    finally:
        pipe._progress_bar_config = before
    lines = file.getvalue().splitlines()
    assert "\r" not in file.getvalue()
    assert [line.split("|")[-1].split()[0] for line in lines[1:]] == ["10/40", "20/40", "30/40", "40/40"]
    assert torch.is_grad_enabled()
