"""Sana-Sprint, whose loop ends one timestep early and hands out its last estimate, against the stock pipeline."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from tiny_families import sana

from diffkit.conditioning import denoiser_call, encode_prompts
from diffkit.errors import InputError
from diffkit.families import SEARCH_FAMILIES, any_family_of
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan
from ttsnap import TTSnapPipeline

PROMPT = "a dog"
OPTIONS = {
    "height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 8,
    "complex_human_instruction": ["be nice"],
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def sprint() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = sana().components
        config = {name: value for name, value in parts["transformer"].config.items() if name[:1] != "_"}
        parts["transformer"] = SanaTransformer2DModel(**{**config, "guidance_embeds": True})
    for part in ("transformer", "text_encoder", "vae"):
        parts[part].eval().requires_grad_(False)
    pipe = SanaSprintPipeline(**{**parts, "scheduler": SCMScheduler()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def pipeline() -> Any:
    return sprint()


def stock(pipe: Any, seed: int, steps: int, **more: Any) -> Any:
    middle = {} if steps == 2 else {"intermediate_timesteps": None}
    given = {**OPTIONS, **middle, **more, "num_inference_steps": steps, "generator": generators([seed])[0]}
    return pipe(PROMPT, **given).images


def search(pipe: Any, steps: int, **more: Any) -> Any:
    wanted = {"num_candidates": 3, "schedule": "0:0.4", "seed": 5, "micro_batch": 1, "num_inference_steps": steps}
    reward = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: images.mean((1, 2, 3)))
    return reward(PROMPT, **{**OPTIONS, **wanted, **more})


def denoised(pipe: Any, cuts: list[int], steps: int = 4, on_estimate: Any = None) -> Candidate:
    encoding = {name: OPTIONS[name] for name in ("max_sequence_length", "complex_human_instruction")}
    conditioning = encode_prompts(pipe, [PROMPT], guidance=False, options=encoding)
    denoising = Denoising(steps, 4.5, 32, 32, micro_batch=1, extra={"use_resolution_binning": False})
    alive = [Candidate(0, 0, generators([11])[0])]
    for start, stop in itertools.pairwise([0, *cuts, steps]):
        alive = run_segment(pipe, alive, conditioning, denoising, start, stop, on_estimate=on_estimate)
    return alive[0]


def test_it_is_among_the_families_that_are_searched():
    assert any_family_of(pipeline()) in SEARCH_FAMILIES


def test_suspended_and_resumed_at_every_step():
    pipe = pipeline()
    uncut = stock(pipe, 11, 4, output_type="latent")
    for cuts in ([], [1], [2], [3], [1, 2, 3]):
        assert torch.equal(denoised(pipe, cuts).latents / 0.5, uncut), cuts


@pytest.mark.parametrize(
    ("steps", "more"),
    [(1, {"schedule": ""}), (2, {}), (2, {"intermediate_timesteps": None}), (4, {"schedule": "1:0.4+1"})],
)
def test_the_winner_is_the_stock_image_of_its_seed(steps, more):
    pipe = pipeline()
    own = {name: value for name, value in more.items() if name != "schedule"}
    for kind in ("np", "latent"):
        out = search(pipe, steps, **more, output_type=kind)
        expected = stock(pipe, out.seeds[0], steps, **own, output_type=kind)
        assert np.array_equal(np.asarray(out.images), np.asarray(expected))
    assert out.ledger.rows_per_call == 1
    assert None not in (out.ledger.flops.call, out.ledger.flops.decode)


def test_in_half_precision_and_in_micro_batches():
    half = sprint().to(dtype=torch.bfloat16)
    out = search(half, 2, output_type="np")
    assert np.array_equal(out.images, stock(half, out.seeds[0], 2, output_type="np"))
    padded = search(pipeline(), 2, output_type="np", micro_batch=4)
    assert np.abs(padded.images - stock(pipeline(), padded.seeds[0], 2, output_type="np")).max() < 1e-4


def test_x0_noise_levels_and_the_denoisers_call_by_hand():
    """x0 = cos(t) x - sin(t) v."""
    pipe, seen, inputs, estimates = pipeline(), [], [], []
    own, forward = pipe.scheduler.step, pipe.transformer.forward

    @functools.wraps(own)
    def step(output, timestep, sample, *args, **kwargs):
        seen.append((output, timestep, sample))
        return own(output, timestep, sample, *args, **kwargs)

    @functools.wraps(forward)
    def called(*args, **kwargs):
        inputs.append((args, kwargs))
        return forward(*args, **kwargs)

    pipe.scheduler.step, pipe.transformer.forward = step, called
    try:
        stock(pipe, 11, 4, output_type="latent")
    finally:
        del pipe.scheduler.step, pipe.transformer.forward
    denoised(pipe, [], on_estimate=lambda _, x0: estimates.append(x0))
    levels = plan(pipe, 4, (32, 32), {"use_resolution_binning": False}).sigmas
    for (output, timestep, sample), estimate, level in zip(seen, estimates, levels, strict=True):
        angle = float(timestep[0])
        torch.testing.assert_close(estimate, np.cos(angle) * sample - np.sin(angle) * output, rtol=1e-4, atol=1e-5)
        assert level == pytest.approx(np.tan(angle) if angle < 1.57 else 1000.0, rel=1e-4)
    encoding = {name: OPTIONS[name] for name in ("max_sequence_length", "complex_human_instruction")}
    text = encode_prompts(pipe, [PROMPT], guidance=False, options=encoding).rows([0]).positive
    call = denoiser_call(pipe, seen[1][2], seen[1][1], text, guidance_scale=4.5, size=(32, 32))
    (latents,), named = any_family_of(pipe).inputs(pipe, call)
    assert torch.equal(latents, inputs[1][0][0])
    for name, value in named.items():
        assert torch.equal(value, inputs[1][1][name]), name


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"timesteps": [1.5, 1.0, 0.0]}, "timesteps end with one that is no step"),
        ({"intermediate_timesteps": 1.1, "num_inference_steps": 3}, "Intermediate timesteps for SCM is not supported"),
        ({"use_resolution_binning": True}, "would denoise at 1024x1024"),
        ({"negative_prompt": "cat"}, "SanaSprintPipeline takes no negative_prompt"),
    ],
)
def test_what_cannot_be_carried_is_refused(more, sentence):
    with pytest.raises(InputError, match=sentence):
        search(pipeline(), 2, **more)


def test_another_scheduler_is_refused():
    pipe = sprint()
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(InputError, match="its loop runs no DDIMScheduler"):
        search(pipe, 2)


def test_a_stopped_image_is_what_the_stock_call_leaves():
    pipe = pipeline()

    def stop(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    more = {"callback_on_step_end": stop, "output_type": "np"}
    out = search(pipe, 4, num_candidates=1, schedule="", **more)
    assert out.interrupted
    assert np.array_equal(out.images, stock(pipe, out.seeds[0], 4, **more))
