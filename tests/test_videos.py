"""Searches of videos, on tiny pipelines of the real classes; the stock pipeline is the reference."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from tiny_families import family_pipeline
from tiny_search import brightness
from tiny_videos import VIDEO_ROWS, video_pipeline

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError, ScoringError
from diffkit.families import SEARCH_FAMILIES, any_family_of, family_of
from diffkit.model_source import model_class
from diffkit.rewards.frames import frame_reward
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan
from ttsnap import TTSnapPipeline
from ttsnap.search.pipeline_kwargs import sort_keywords

STEPS, PROMPT = 4, "a dog"
NAMES = list(VIDEO_ROWS)
SHOWN = {"height": 32, "width": 32}

pytestmark = pytest.mark.usefixtures("one_thread")


@functools.cache
def pipeline(name: str) -> Any:
    return video_pipeline(name)


def options(name: str, **more: Any) -> dict[str, Any]:
    row = VIDEO_ROWS[name]
    return {"num_inference_steps": STEPS, **row.options, **row.guided, **more}


def stock(pipe: Any, name: str, seed: int, prompt: str = PROMPT, **more: Any) -> Any:
    return pipe(prompt, **options(name, generator=generators([seed])[0], **more)).frames


def search(pipe: Any, name: str, prompt: Any = PROMPT, reward: Any = brightness, **more: Any) -> Any:
    wanted = {"num_candidates": 3, "schedule": "1:0.4", "seed": 5}
    return TTSnapPipeline.from_pipe(pipe, reward=reward)(prompt, **options(name, **{**wanted, **more}))


def pixels(frames: Any) -> np.ndarray:
    return np.stack([np.asarray(frame) for video in frames for frame in video])


def test_every_family_of_videos_has_a_row():
    names = {any_family_of(pipeline(name)).name for name in NAMES}
    assert {family.name for family in SEARCH_FAMILIES if family.makes_videos} == names


@pytest.mark.parametrize("name", [*NAMES, "wan-euler"])
def test_suspended_and_resumed_at_every_step(name):
    pipe = video_pipeline(name.removesuffix("-euler"))
    if name.endswith("-euler"):
        pipe.scheduler, name = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "wan"
    given = {key: value for key, value in options(name).items() if key not in SHOWN}
    extra, encoding = sort_keywords(any_family_of(pipe), given)
    scale, negative = extra.pop("guidance_scale", None), extra.pop("negative_prompt")
    extra.pop("num_inference_steps")
    conditioning = encode_prompts(pipe, [PROMPT], negative, options=encoding)
    denoising = Denoising(STEPS, scale, **SHOWN, micro_batch=1, extra=extra, frames=5)
    assert plan(pipe, STEPS, denoising.size, extra).calls == STEPS
    uncut = stock(pipe, name, 11, output_type="latent")
    for cuts in [[], *([cut] for cut in range(1, STEPS)), list(range(1, STEPS))]:
        alive = [Candidate(0, 0, generators([11])[0])]
        for start, stop in itertools.pairwise([0, *cuts, STEPS]):
            alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
        assert torch.equal(alive[0].latents, uncut), cuts


@pytest.mark.parametrize("name", NAMES)
def test_the_winner_is_the_stock_video_of_its_seed(name):
    """For each of two prompts."""
    pipe = pipeline(name)
    prompts = [PROMPT, "cat at dog"]
    out = search(pipe, name, prompts, output_type="np")
    for row, prompt in enumerate(prompts):
        assert np.array_equal(out.frames[row], stock(pipe, name, out.seeds[row], prompt, output_type="np")[0])
    ledger = out.ledger
    assert ledger.rows_per_call == 2
    assert None not in (ledger.flops.call, ledger.flops.decode, ledger.flops.encode, ledger.flops.verify)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_it_is_handed_out_as_the_stock_pipeline_does(name):
    """As tensors, latents and pictures, these by a look ahead."""
    pipe = pipeline(name)
    for kind in ("pt", "latent"):
        out = search(pipe, name, output_type=kind)
        assert torch.equal(out.frames, stock(pipe, name, out.seeds[0], output_type=kind))
    shown = search(pipe, name, output_type="pil", schedule="1:0.4+1", num_candidates=2)
    assert np.array_equal(pixels(shown.frames), pixels(stock(pipe, name, shown.seeds[0], output_type="pil")))
    assert [look.lookahead for look in shown.trace] == [1, 0]


@pytest.mark.parametrize(("name", "schedule"), [("wan", "1:0.4"), ("ltx", "1:0.4"), ("hunyuan", "")])
def test_by_default_and_in_half_precision_it_is_the_stock_video(name, schedule):
    half = video_pipeline(name).to(dtype=torch.bfloat16)
    out = search(half, name, num_candidates=2, schedule=schedule)
    reference = stock(half, name, out.seeds[0])
    assert type(out.frames) is type(reference)
    assert np.array_equal(pixels(out.frames), pixels(reference))
    assert np.isfinite(out.rewards[0])
    if not schedule:
        with pytest.raises(InputError, match="cannot be cut: its loop carries half precision"):
            search(half, name)


def test_the_reward_of_a_video_is_the_mean_over_its_frames():
    pipe, seen = pipeline("ltx"), []

    def whole(videos, prompts):
        seen.append(tuple(videos.shape))
        return videos[:, -1].mean((1, 2, 3))

    whole.scores_videos = True
    plain = {"output_type": "pt", "schedule": "", "seed": None, "seeds": [3, 4]}
    for reward, expected in [
        (brightness, lambda video: 10 * video.mean()),
        (frame_reward(brightness, every=2), lambda video: 10 * video[::2].mean()),
        (whole, lambda video: video[-1].mean()),
    ]:
        out = search(pipe, "ltx", reward=reward, num_videos_per_prompt=2, num_candidates=2, **plain)
        videos = torch.cat([stock(pipe, "ltx", seed, output_type="pt") for seed in out.seeds])
        assert torch.equal(out.frames, videos)
        assert out.rewards == pytest.approx([float(expected(video)) for video in videos])
        assert out.rewards == sorted(out.rewards, reverse=True)
    assert set(seen) == {(1, 5, 3, 32, 32)}


def test_a_video_with_a_frame_that_cannot_be_scored_is_not_scored():
    def choosy(images, prompts):
        return torch.where(torch.arange(len(images)) == 1, torch.nan, images.mean((1, 2, 3)))

    with pytest.raises(ScoringError, match="'choosy, mean of all frames' returned nan"):
        search(pipeline("wan"), "wan", reward=choosy)


def test_what_is_shown_of_a_video_is_its_middle_frame():
    pipe = pipeline("wan")
    out = search(
        pipe, "wan", output_type="pil", previews=True, num_images_per_prompt=2, diversity=0.5, schedule="1:0.7",
        held_out_rewards=lambda images, prompts: images.std((1, 2, 3)),
    )  # fmt: skip
    last = out.trace[-1]
    for seed, frames in zip(out.seeds, out.frames, strict=True):
        assert np.array_equal(np.asarray(last.previews[last.seeds.index(seed)]), np.asarray(frames[2]))
    assert [len(scores) for scores in out.held_out] == [1, 1]


def test_a_search_that_is_stopped_leaves_gaps_as_large_as_videos():
    pipe = pipeline("wan")
    out = search(pipe, "wan", [PROMPT, "cat"], schedule="1:0.4", callback_on_look=lambda pipe, look: False)
    assert out.interrupted
    assert out.frames.shape == (2, 5, 32, 32, 3)
    assert np.isnan(out.frames).all()


def test_searches_by_name_and_budget():
    pipe = pipeline("ltx")
    for name in ("zero-order", "lookahead"):
        out = search(pipe, "ltx", num_candidates=None, schedule="", search=name, budget="4x", output_type="np")
        assert np.isfinite(out.rewards[0])


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("wan", {"preview_vae": object()}, "takes no preview_vae"),
        ("wan", {"copy_guard": object()}, "takes no copy_guard"),
        ("wan", {"num_frames": 0}, "num_frames must be a whole number of at least 1"),
        ("wan", {"height": 40}, "height must be a positive multiple of 16"),
        ("ltx", {"decode_timestep": [0.1, 0.2]}, "decode_timestep must be one number"),
        ("ltx", {"output_type": "mp4"}, "Unknown output_type"),
        ("ltx", {"num_videos_per_prompt": 1.5}, "num_videos_per_prompt must be a whole number"),
    ],
)
def test_what_a_search_of_videos_cannot_do_is_refused(name, more, sentence):
    with pytest.raises(InputError, match=sentence):
        search(pipeline(name), name, **more)


def test_models_that_cannot_be_searched_are_refused(tmp_path):
    two = video_pipeline("wan2.2")
    two.transformer_2.register_to_config(num_layers=2)
    with pytest.raises(InputError, match="its two transformers differ in size"):
        search(two, "wan2.2")
    noisy = video_pipeline("ltx")
    noisy.vae.register_to_config(decoder_inject_noise=(True, False, False))
    with pytest.raises(InputError, match="no seed draws it again"):
        search(noisy, "ltx")


def test_videos_are_for_a_search_only(tmp_path):
    with pytest.raises(InputError, match="only: it makes videos"):
        family_of(pipeline("wan"))
    (tmp_path / "model_index.json").write_text('{"_class_name": "WanPipeline", "_diffusers_version": "0.42.1"}')
    assert model_class(tmp_path) is diffusers.WanPipeline
    with pytest.raises(InputError, match="scores videos, and StableDiffusionPipeline makes images"):
        TTSnapPipeline.from_pipe(family_pipeline("sd1"), reward=frame_reward(brightness))(PROMPT)
    with pytest.raises(InputError, match="every must be"):
        frame_reward(brightness, every=0)


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_a_stopped_video_is_what_the_stock_call_leaves(name):
    pipe = pipeline(name)

    def stop(pipe, step, timestep, values):
        pipe._interrupt = step == 1
        return values

    more = {"callback_on_step_end": stop, "output_type": "np"}
    out = search(pipe, name, num_candidates=1, schedule="", **more)
    assert out.interrupted
    assert np.array_equal(out.frames, stock(pipe, name, out.seeds[0], **more))


@pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_wan_in_half_precision_is_cut_where_no_rounding_differs(scheduler):
    half = video_pipeline("wan").to(dtype=torch.bfloat16)
    if "FlowMatch" not in scheduler:
        half.scheduler = getattr(diffusers, scheduler).from_config(half.scheduler.config)
        with pytest.raises(InputError, match="rounds what it would not after a cut"):
            search(half, "wan")
        return
    half.scheduler = getattr(diffusers, scheduler)(shift=3.0)
    out = search(half, "wan", num_candidates=2, schedule="2:0.5")
    assert np.array_equal(out.frames, stock(half, "wan", out.seeds[0]))
