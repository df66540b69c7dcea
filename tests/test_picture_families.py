"""Families that begin from a picture, a row each; the reference is the stock pipeline's call with the same picture."""

from __future__ import annotations

import functools
import itertools
import threading
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image, ImageOps
from tiny import SCHEDULERS
from tiny_edits import EDITS, MASK, RAMP, RING, edit_pipeline
from tiny_families import FAMILY_ROWS
from tiny_search import brightness, pixels, seeded, shared_family
from torch.utils.flop_counter import FlopCounterMode

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError
from diffkit.families import FAMILIES, family_of, is_guided
from diffkit.lookahead import look_ahead
from diffkit.model_options import ModelOptions
from diffkit.prepared_again import idle
from diffkit.segments import Candidate, Denoising, run_segment
from diffkit.step_plan import plan
from ttsnap import TTSnapPipeline
from ttsnap.search.noise import replay
from ttsnap.search.strategies.fk_steering import FKSteering

PROMPT, SEED, STEPS = "a dog", 11, 4
NAMES = list(EDITS)
#: Those that prepare several candidates at once in ways of their own.
TOGETHER = {"sd1-img2img", "sdxl-inpaint", "sd3-img2img", "flux-inpaint", "flux-fill", "flux-kontext", "flux-control"}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "cat"}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_edits(monkeypatch):
    """Qwen-Image-Edit makes pictures of a million pixels."""
    monkeypatch.setattr(pipeline_qwenimage_edit, "calculate_dimensions", lambda area, ratio: (32, 32, None))
    monkeypatch.setattr(pipeline_qwenimage_edit_plus, "calculate_dimensions", lambda area, ratio: (32, 32))


@functools.cache
def pipeline(name: str) -> Any:
    return edit_pipeline(name)


def options(name: str) -> dict[str, Any]:
    given = {"num_inference_steps": STEPS, **GUIDED, **EDITS[name].options}
    if "negative_prompt" not in signature(type(pipeline(name)).__call__).parameters:
        del given["negative_prompt"]
    return given


def stock(pipe: Any, name: str, seed: int = SEED, **more: Any) -> Any:
    return pipe(prompt=PROMPT, **{**options(name), **more}, generator=seeded(seed))[0]


def parts(pipe: Any, name: str, **more: Any):
    """The conditioning and denoising that a search would make of the call's options."""
    given = {**options(name), **more}
    negative, scale = given.pop("negative_prompt", None), given.pop("guidance_scale")
    size = given.pop("height", 32), given.pop("width", 32)
    extra = {key: value for key, value in given.items() if key != "num_inference_steps"}
    guided = is_guided(pipe, scale, {**extra, "negative_prompt": negative})
    conditioning = encode_prompts(pipe, [PROMPT], negative, guidance=guided, options=extra)
    return conditioning, Denoising(STEPS, scale, *size, micro_batch=1, extra=extra)


def suspended(pipe: Any, name: str, cuts: list[int], calls: int, **more: Any) -> torch.Tensor:
    conditioning, denoising = parts(pipe, name, **more)
    alive = [Candidate(0, 0, seeded(SEED))]
    for start, stop in itertools.pairwise([0, *cuts, calls]):
        alive = run_segment(pipe, alive, conditioning, denoising, start, stop)
    assert alive[0].latents is not None
    return alive[0].latents


def test_every_family_that_begins_from_a_picture_has_a_row():
    assert {family.name for family in FAMILIES if family.edits} == {family_of(pipeline(n)).name for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_suspended_and_resumed_at_every_step(name):
    pipe, calls = pipeline(name), EDITS[name].calls
    _, denoising = parts(pipe, name)
    assert plan(pipe, STEPS, denoising.size, denoising.extra).calls == calls
    assert torch.equal(suspended(pipe, name, list(range(1, calls)), calls), stock(pipe, name, output_type="latent"))


@pytest.mark.parametrize("name", NAMES)
def test_the_winner_is_the_stock_image_of_its_seed(name):
    pipe = pipeline(name)
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    given = {**options(name), "num_candidates": 2, "schedule": "0:0.5", "seed": 3}
    strict = search(prompt=PROMPT, **given, micro_batch=1)
    reference = pixels(stock(pipe, name, strict.seeds[0])[0])
    assert np.array_equal(pixels(strict.images[0]), reference)
    if name in TOGETHER:
        padded = search(prompt=PROMPT, **given)
        assert padded.seeds == strict.seeds
        assert np.abs(pixels(padded.images[0]) - reference).max() <= 1
    assert strict.ledger.calls == EDITS[name].calls + 1
    assert None not in (strict.ledger.flops.call, strict.ledger.flops.decode)


STOCHASTIC = ["euler-ancestral", "kdpm2-ancestral", "dpm-sde", "heun", "unipc", "pndm", "lcm", "tcd"]


@pytest.mark.parametrize("scheduler", STOCHASTIC)
def test_inpainting_by_schedulers_of_each_kind_can_be_cut(scheduler):
    """The kept part gets noise of the level after each step, and a step's own noise comes from the same generator."""
    pipe = edit_pipeline("sd1-inpaint")
    pipe.scheduler = SCHEDULERS[scheduler]()
    _, denoising = parts(pipe, "sd1-inpaint")
    calls = plan(pipe, STEPS, denoising.size, denoising.extra).calls
    cut = suspended(pipe, "sd1-inpaint", list(range(1, calls)), calls)
    assert torch.equal(cut, stock(pipe, "sd1-inpaint", output_type="latent"))


@pytest.mark.parametrize("scheduler", ["dpm++", "euler"])
def test_a_lookahead_keeps_the_kept_part(scheduler):
    """By all calls that are left: with the solver of lookahead's own, or before the last step, it is the denoising."""
    pipe = edit_pipeline("sd1-inpaint")
    pipe.scheduler = SCHEDULERS[scheduler]()
    conditioning, denoising = parts(pipe, "sd1-inpaint", strength=1.0)
    for start in (1, STEPS - 1) if scheduler == "dpm++" else (STEPS - 1,):
        fresh = [Candidate(0, 0, seeded(SEED))]
        alive = run_segment(pipe, fresh, conditioning, denoising, 0, start)
        [estimate] = look_ahead(pipe, alive, conditioning, denoising, STEPS - start)
        [done] = run_segment(pipe, alive, conditioning, denoising, start, STEPS)
        torch.testing.assert_close(estimate, done.latents, rtol=1e-3, atol=1e-4 * float(done.latents.abs().max()))
        assert look_ahead(pipe, alive, conditioning, denoising, 1)[0].isfinite().all()


def test_looks_see_the_kept_part_as_the_finished_image_has_it():
    pipe = pipeline("sd1-inpaint")
    conditioning, denoising = parts(pipe, "sd1-inpaint")
    alive = run_segment(pipe, [Candidate(0, 0, seeded(SEED))], conditioning, denoising, 0, 1)
    kept = torch.from_numpy(np.array(MASK.resize((8, 8), Image.Resampling.NEAREST))) == 0
    finished = stock(pipe, "sd1-inpaint", output_type="latent")
    assert torch.equal(alive[0].x0[..., kept], finished[..., kept])
    assert not torch.equal(alive[0].x0[..., ~kept], finished[..., ~kept])


@pytest.mark.parametrize(
    "name", ["sd1-inpaint-9", "sd1-controlnet-inpaint", "flux-fill", "flux-kontext", "flux-controlnet"]
)
def test_a_call_costs_what_the_stock_call_pays(name):
    pipe = pipeline(name)
    counts = []
    for steps in (2, 3):
        with FlopCounterMode(display=False) as counter:
            stock(pipe, name, num_inference_steps=steps, output_type="latent")
        counts.append(counter.get_total_flops())
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    assert search(prompt=PROMPT, **options(name), num_candidates=1, seed=1).ledger.flops.call == counts[1] - counts[0]


def test_a_picture_is_encoded_once_in_a_search():
    pipe, encoded = edit_pipeline("sd1-inpaint"), []
    pipe.vae.encoder.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    search(prompt=PROMPT, **options("sd1-inpaint"), num_candidates=2, schedule="0:0.5", seed=3)
    assert encoded == [1, 1]  # the picture, and the masked picture
    assert type(pipe.vae).__name__ == "AutoencoderKL"
    assert "_encoded_pictures" not in vars(search)


@pytest.mark.parametrize("name", ["flux2", "flux2-klein"])
def test_reference_pictures_of_families_of_text(name):
    pipe, row = shared_family(name), FAMILY_ROWS[name]
    references = [picture.resize((64, 64)) for picture in (RAMP, RING)]
    given = {**row.options, **row.guided, "image": references, "num_inference_steps": 2}
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    out = search(prompt=PROMPT, **given, num_candidates=2, schedule="0:0.5", seed=3, micro_batch=1)
    alone = pipe(prompt=PROMPT, **given, generator=seeded(out.seeds[0])).images[0]
    assert np.array_equal(pixels(out.images[0]), pixels(alone))
    without = search(prompt=PROMPT, **{**given, "image": None}, num_candidates=1, seed=3).ledger.flops.call
    assert out.ledger.flops.call > without


def test_half_precision():
    pipe = edit_pipeline("sd1-inpaint").to(dtype=torch.bfloat16)
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    out = search(prompt=PROMPT, **options("sd1-inpaint"), num_candidates=2, schedule="0:0.5", seed=3, micro_batch=1)
    assert np.array_equal(pixels(out.images[0]), pixels(stock(pipe, "sd1-inpaint", out.seeds[0])[0]))
    assert np.isfinite(out.trace[0].scores).all()


def test_steered_copies_can_be_drawn_again():
    pipe = edit_pipeline("sd1-inpaint")
    pipe.scheduler = SCHEDULERS["euler-ancestral"]()
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    steered = {"search": FKSteering(strength=200.0), "budget": "8x", "num_images_per_prompt": 4, "seed": 3}
    given = {**options("sd1-inpaint"), "strength": 1.0}
    out = search(prompt=PROMPT, **given, **steered, micro_batch=1, output_type="latent")
    conditioning, denoising = parts(pipe, "sd1-inpaint", strength=1.0)
    recipes = [(row, recipe) for row, recipe in enumerate(out.recipes) if recipe is not None]
    assert recipes
    for row, recipe in recipes:
        again = replay(recipe, pipe, conditioning, denoising, (1, 4, 8, 8), STEPS)
        assert torch.equal(again.latents, out.images[row : row + 1])


def test_a_pipeline_made_of_idle_parts_is_refused_meanwhile_and_whole_afterwards():
    pipe = pipeline("sd1-img2img")
    expected = stock(pipe, "sd1-img2img", output_type="latent")
    refused: list[str] = []
    with idle(pipe):
        other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)

        def call() -> None:
            with pytest.raises(InputError, match="in the middle of a search in another thread"):
                stock(other, "sd1-img2img")
            refused.append("yes")

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert refused == ["yes"]
    assert torch.equal(stock(other, "sd1-img2img", output_type="latent"), expected)
    assert torch.equal(stock(pipe, "sd1-img2img", output_type="latent"), expected)


def test_pictures_of_each_prompts_own():
    pipe = pipeline("sd1-inpaint")
    pictures, masks, prompts = [RAMP, RING], [MASK, ImageOps.mirror(MASK)], ["a dog", "cat"]
    own = {**options("sd1-inpaint"), "image": pictures, "mask_image": masks, "negative_prompt": ["cat", "dog"]}
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    out = search(prompt=prompts, **own, num_candidates=2, schedule="0:0.5", seed=3, micro_batch=1)
    for index, seed in enumerate(out.seeds):
        single = {key: value[index] if isinstance(value, list) else value for key, value in own.items()}
        alone = pipe(prompts[index], **single, generator=seeded(seed)).images[0]
        assert np.array_equal(pixels(out.images[index]), pixels(alone))


def test_latents_for_a_picture_and_one_generator_for_all_prompts():
    pipe, name = pipeline("sd1-img2img"), "sd1-img2img"
    search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
    given = {**options(name), "image": torch.randn(1, 4, 8, 8, generator=seeded(1))}
    out = search(prompt=PROMPT, **given, num_candidates=2, schedule="0:0.5", seed=3)
    alone = pipe(PROMPT, **given, generator=seeded(out.seeds[0])).images[0]
    assert np.array_equal(pixels(out.images[0]), pixels(alone))
    seen: list[int] = []
    both = {**options(name), "prompt": ["a dog", "cat"], "negative_prompt": ["cat", "cat"], "output_type": "np"}
    together = search(
        **both, num_candidates=1, generator=seeded(5),
        callback_on_step_end=lambda pipe, step, timestep, values: seen.append(step) or {},
    )  # fmt: skip
    assert np.array_equal(together.images, pipe(**both, generator=seeded(5)).images)
    assert seen == [0, 1, 2]


def test_a_saved_pipeline_searches_and_commands_refuse_it(tmp_path):
    pipe = pipeline("sd1-inpaint")
    pipe.save_pretrained(tmp_path)
    loaded = TTSnapPipeline.from_pretrained(tmp_path, reward=brightness)
    assert isinstance(loaded, StableDiffusionInpaintPipeline)
    with pytest.raises(InputError, match=r"StableDiffusionInpaintPipeline begins from a picture \(image, mask_image"):
        ModelOptions(model=str(tmp_path)).load()
    with pytest.raises(InputError, match="here are prompts only"):
        predict_noise(pipe, torch.zeros(1, 4, 8, 8), torch.tensor(1), torch.zeros(1, 16, 32))


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("sd1-img2img", {"image": None}, "StableDiffusionImg2ImgPipeline needs image="),
        ("sd1-img2img", {"image": [RAMP] * 2}, "Got 2 images in image= for 1 prompts"),
        ("sd1-img2img", {"strength": 0.1}, "A strength of 0.1 leaves none of 4 steps"),
        ("sd1-img2img", {"strength": 1.5}, "strength must lie between 0 and 1, got 1.5"),
        ("sd1-img2img", {"height": 64, "width": 64}, "takes no height or width: its images"),
        ("sd1-img2img", {"search": "zero-order", "budget": "4x"}, "mixes initial noise"),
        ("sd1-inpaint", {"mask_image": torch.zeros(2, 32, 32)}, "must have 2 dimensions or, for several masks, 4"),
        ("sd1-inpaint", {"padding_mask_crop": 4}, "padding_mask_crop pastes the finished image"),
        ("sdxl-img2img", {"denoising_start": 0.5}, "use strength"),
        ("flux-kontext", {"max_area": 4096}, "of 32x32 it makes 64x64"),
        ("qwen-image-edit-plus", {"micro_batch": 2}, "makes one image at a time; leave out micro_batch"),
        ("qwen-image-edit", {"image": torch.zeros(1, 3, 32, 32)}, "needs image= as a PIL image"),
    ],
)
def test_what_cannot_be_carried_is_refused(name, more, sentence):
    search = TTSnapPipeline.from_pipe(pipeline(name), reward=brightness)
    with pytest.raises(InputError, match=sentence):
        search(prompt=PROMPT, **{**options(name), "num_candidates": None if "budget" in more else 2, **more})
