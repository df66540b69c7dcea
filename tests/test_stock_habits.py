"""What diffusers' users do with a pipeline works with a search pipeline: other tasks, pickles, tuples, positions."""

from __future__ import annotations

import copy
import inspect
import pickle

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from tiny import tiny_pipeline
from tiny_families import CONTROL, family_pipeline
from tiny_search import brightness, pixels

from diffkit.errors import InputError
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline
from ttsnap.search.pipeline_class import search_class

PROMPT, OPTIONS = "a dog", {"num_inference_steps": 4, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def pipe() -> TTSnapPipeline:
    return TTSnapPipeline.from_pipe(tiny_pipeline(vae="kl"), reward=brightness)


def search(pipe, **options):
    return pipe(PROMPT, **{**OPTIONS, "seeds": [3, 4], **options})


def test_the_winner_is_refined_by_the_pipelines_of_other_tasks(pipe):
    winner, stock = search(pipe).images[0], tiny_pipeline(vae="kl")
    refine = {"prompt": PROMPT, "image": winner, "num_inference_steps": 4, "strength": 0.5}
    made = []
    for task in (AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline):
        refining = task.from_pipe(pipe)
        refining.set_progress_bar_config(disable=True)
        assert type(refining) is StableDiffusionImg2ImgPipeline
        assert refining.unet is pipe.unet
        made.append(pixels(refining(**refine, generator=generators([1])[0]).images[0]))
    expected = AutoPipelineForImage2Image.from_pipe(stock)
    expected.set_progress_bar_config(disable=True)
    made.append(pixels(expected(**refine, generator=generators([1])[0]).images[0]))
    assert np.array_equal(made[0], made[2])
    assert np.array_equal(made[1], made[2])
    assert type(AutoPipelineForInpainting.from_pipe(pipe)).__name__ == "StableDiffusionInpaintPipeline"
    assert type(AutoPipelineForText2Image.from_pipe(pipe)) is StableDiffusionPipeline


def test_a_search_pipeline_of_a_search_pipeline_and_of_another_task(pipe):
    again = TTSnapPipeline.from_pipe(pipe)
    assert type(again) is type(pipe)
    assert search(again).seeds == search(pipe).seeds
    painting = TTSnapPipeline.from_pipe(AutoPipelineForInpainting.from_pipe(pipe))
    assert type(painting).__name__ == "StableDiffusionInpaintPipeline"
    assert type(AutoPipelineForText2Image.from_pipe(painting)) is StableDiffusionPipeline
    assert repr(pipe).startswith("TTSnapPipeline of StableDiffusionPipeline {")
    assert type(pipe).__qualname__ == "TTSnapStableDiffusionPipeline"


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_image_to_image_of_other_families(name):
    pipe = TTSnapPipeline.from_pipe(family_pipeline(name), reward=brightness)
    stock = type(AutoPipelineForImage2Image.from_pipe(family_pipeline(name)))
    assert type(AutoPipelineForImage2Image.from_pipe(pipe)) is stock


def test_a_pickled_pipeline_searches_where_its_class_was_never_made(pipe):
    """As in a spawned process: the class comes from the pickle alone, and so does the reward, by its module."""
    own = TTSnapPipeline.from_pipe(pipe, reward=brightness, schedule="1:0.5")
    expected, written = search(own), pickle.dumps(own)
    search_class.cache_clear()
    loaded = pickle.loads(written)
    assert type(loaded) is not type(own)
    assert (type(loaded).__name__, loaded.unet is own.unet) == ("StableDiffusionPipeline", False)
    out = search(loaded)
    assert (out.seeds, out.rewards, len(out.trace)) == (expected.seeds, expected.rewards, 2)


def test_a_reward_that_cannot_be_pickled_is_left_out_and_named(pipe):
    own = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: images.mean((1, 2, 3)))
    expected = search(own)
    loaded = pickle.loads(pickle.dumps(own))
    with pytest.raises(InputError, match=r"the one it had could not be pickled: .*lambda.*; give reward="):
        search(loaded)
    assert search(loaded, reward=brightness).seeds == expected.seeds
    assert np.array_equal(pixels(search(loaded, reward=brightness).images[0]), pixels(expected.images[0]))
    for copied in (copy.copy(own), copy.deepcopy(own)):
        assert search(copied).seeds == expected.seeds
    assert copy.deepcopy(own).unet is not own.unet
    assert copy.copy(own).unet is own.unet


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_return_dict_false_gives_the_familys_own_tuple(name):
    stock = family_pipeline(name)
    expected = stock(PROMPT, **OPTIONS, generator=generators([3])[0], return_dict=False)
    values = TTSnapPipeline.from_pipe(stock, reward=brightness)(PROMPT, **OPTIONS, seeds=[3], return_dict=False)
    assert len(values) == len(expected) == (2 if name == "sd1" else 1)
    assert np.array_equal(pixels(values[0][0]), pixels(expected[0][0]))
    assert values[1:] == expected[1:]
    assert values.search.seeds == [3]
    assert copy.copy(values).search.images is values.search.images


def test_a_subclass_with_another_parent_first_saves_as_stock(pipe, tmp_path):
    class Other:
        pass

    class Mixed(Other, type(pipe)):
        pass

    mixed = Mixed.__new__(Mixed)
    vars(mixed).update(vars(pipe))
    mixed.save_pretrained(tmp_path)
    assert diffusers.DiffusionPipeline.load_config(tmp_path)["_class_name"] == "StableDiffusionPipeline"
    assert search(mixed).seeds == search(pipe).seeds


class Scaled(StableDiffusionPipeline):
    """As a community pipeline: a keyword and a default of its own."""

    def __call__(self, prompt=None, extra_scale=1.0, num_inference_steps=3, **more):
        return super().__call__(prompt, guidance_scale=1.0 + extra_scale, num_inference_steps=num_inference_steps, **{
            name: value for name, value in more.items() if name != "guidance_scale"
        })  # fmt: skip


def test_a_community_pipelines_own_keyword_goes_through():
    stock = Scaled(**tiny_pipeline().components, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    pipe = TTSnapPipeline.from_pipe(stock, reward=brightness)
    out = pipe(PROMPT, extra_scale=3.0, seeds=[3, 4], schedule="1:0.5", micro_batch=1)
    expected = stock(PROMPT, extra_scale=3.0, generator=generators(out.seeds)[0]).images[0]
    assert [look.step for look in out.trace] == [1, 2]
    assert np.array_equal(pixels(out.images[0]), pixels(expected))
    with pytest.raises(InputError, match="takes no extra_scales; its own keywords are: prompt, extra_scale"):
        pipe(PROMPT, extra_scales=3.0)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux"])
def test_the_signature_shows_stock_keywords_and_ours(name):
    stock = family_pipeline(name)
    pipe = TTSnapPipeline.from_pipe(stock, reward=brightness)
    theirs = inspect.signature(stock.__call__).parameters
    theirs = {name: each for name, each in theirs.items() if each.kind is not each.VAR_KEYWORD}
    shown = inspect.signature(pipe.__call__).parameters
    assert [(each.name, each.kind, each.default) for each in theirs.values()] == [
        (each.name, each.kind, each.default) for each in list(shown.values())[: len(theirs)]
    ]
    assert {"num_candidates", "schedule", "budget", "search", "seed"} <= set(shown)
    assert all(each.kind is each.KEYWORD_ONLY for each in list(shown.values())[len(theirs) :])


def test_places_mean_what_they_mean_in_the_stock_pipeline(pipe):
    assert search(pipe).seeds == pipe(PROMPT, 64, 64, 4, guidance_scale=3.0, seeds=[3, 4]).seeds
    sdxl = family_pipeline("sdxl")
    out = TTSnapPipeline.from_pipe(sdxl, reward=brightness)(PROMPT, "cat", seeds=[3], **OPTIONS)
    expected = sdxl(PROMPT, "cat", generator=generators([3])[0], **OPTIONS).images[0]
    assert np.array_equal(pixels(out.images[0]), pixels(expected))
    control = family_pipeline("sd1-controlnet")
    out = TTSnapPipeline.from_pipe(control, reward=brightness)(PROMPT, CONTROL["image"], seeds=[3], **OPTIONS)
    expected = control(PROMPT, CONTROL["image"], generator=generators([3])[0], **OPTIONS).images[0]
    assert np.array_equal(pixels(out.images[0]), pixels(expected))
    with pytest.raises(InputError, match="prompt is given twice, by its position and by its name"):
        pipe(PROMPT, prompt=PROMPT)


def test_the_class_alone_makes_no_pipeline():
    with pytest.raises(InputError, match=r"TTSnapPipeline.from_pipe\(StableDiffusionPipeline\(\*\*components\)"):
        TTSnapPipeline(**tiny_pipeline().components)
    target = type(TTSnapPipeline.from_pipe(tiny_pipeline()))
    made = target(**tiny_pipeline().components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    assert search(made, reward=brightness).seeds in ([3], [4])
    assert torch.is_tensor(search(made, reward=brightness, output_type="pt").images)


def test_a_reward_may_change_its_images_in_place(pipe):
    """They are its own copy, so that the winner and what other rewards see stay as they were made."""

    def halving(images, prompts):
        images *= 0.5
        return brightness(images, prompts)

    def dark(images, prompts):
        return -brightness(images, prompts)

    expected = search(pipe, held_out_rewards=[dark])
    out = search(pipe, reward=halving, held_out_rewards=[brightness, dark])
    assert np.array_equal(pixels(out.images[0]), pixels(expected.images[0]))
    assert out.held_out[0]["dark"] == expected.held_out[0]["dark"] == -out.held_out[0]["brightness"]


def test_a_reward_may_be_set_on_the_pipeline():
    pipe = TTSnapPipeline.from_pipe(tiny_pipeline())
    pipe.reward = brightness
    assert search(pipe).seeds == search(TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)).seeds


def test_a_stderr_that_knows_no_terminal(pipe, monkeypatch):
    """Such as notebooks and services put in its place."""

    class Written:
        def write(self, text):
            return len(text)

        def flush(self):
            pass

    expected = search(pipe).seeds
    monkeypatch.setattr("sys.stderr", Written())
    assert search(pipe).seeds == expected


@pytest.mark.parametrize(("answer", "stops"), [(False, True), (np.False_, True), (None, False), ({}, False)])
def test_a_search_is_stopped_by_false_alone(pipe, answer, stops):
    out = search(pipe, schedule="1:0.5", callback_on_look=lambda *_look: answer)
    assert out.interrupted is stops


def test_settings_of_the_pipeline_may_be_replaced_with_components():
    pipe = TTSnapPipeline.from_pipe(
        tiny_pipeline(), reward=brightness, safety_checker=None, requires_safety_checker=False
    )
    assert pipe.config.requires_safety_checker is False
    assert search(pipe).seeds == search(TTSnapPipeline.from_pipe(tiny_pipeline(), reward=brightness)).seeds


@pytest.fixture(scope="module")
def half():
    pipe = family_pipeline("sdxl").to(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    return pipe


def test_an_upcast_autoencoder_is_half_again_when_memory_runs_out(half, monkeypatch):
    decode, sizes = half.vae.decode, []

    def scarce(latents, **named):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents, **named)

    monkeypatch.setattr(half.vae, "decode", scarce)
    pipe = TTSnapPipeline.from_pipe(half, reward=brightness)
    search(pipe, schedule="", micro_batch="auto")
    assert max(sizes) == 2
    assert half.vae.dtype == torch.float16


def test_tensors_of_an_upcast_autoencoder_are_the_stock_pipelines(half):
    options = {**OPTIONS, "output_type": "pt"}
    out = TTSnapPipeline.from_pipe(half, reward=brightness)(PROMPT, **options, seeds=[3], micro_batch=1)
    expected = half(PROMPT, **options, generator=generators([3])[0]).images
    assert out.images.dtype == expected.dtype == torch.float32
    assert torch.equal(out.images, expected)
