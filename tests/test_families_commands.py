"""Folders of SDXL, SD3 and FLUX.1 from the command line and by name; hub ids without a network."""

from __future__ import annotations

import json
import re

import diffusers
import numpy as np
import pytest
from PIL import Image
from tiny_families import family_pipeline
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.families import FAMILIES, why_unknown
from diffkit.loading import load_pipeline
from diffkit.rewards import REWARDS
from diffkit.rewards.base import as_reward
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline


@REWARDS.register("test-families-brightness")
def brightness():
    return as_reward(lambda images, prompts: images.mean((1, 2, 3)))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "size"), [("sdxl", 64), ("sd3", 64), ("flux", 32)])
def test_generate_from_a_folder(name, size, tmp_path):
    family_pipeline(name).save_pretrained(tmp_path / "model")
    more = ["--candidates", "3", "--schedule", "1:0.5", "--steps", "4", "--micro-batch", "1", "--device", "cpu"]
    more += ["--height", str(size), "--width", str(size), "--seed", "7", "--format", "json"]
    fixed = ["--model", str(tmp_path / "model"), "--reward", "test-families-brightness", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["ttsnap", "generate", "a dog", *fixed, *more])
    assert result.exit_code == 0, result.output
    (winner,) = json.loads(result.stdout)[0]["winners"]
    stock = load_pipeline(tmp_path / "model", device="cpu")
    image = stock(
        "a dog", num_inference_steps=4, guidance_scale=3.0, height=size, width=size,
        generator=generators([winner["seed"]])[0],
    ).images[0]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "run" / winner["image"])), np.asarray(image))
    pipe = TTSnapPipeline.from_pretrained(tmp_path / "model", reward="test-families-brightness")
    assert isinstance(pipe, type(stock))


def test_a_hub_id_without_a_network_is_one_sentence():
    for load in (TTSnapPipeline.from_pretrained, load_pipeline):
        with pytest.raises(InputError, match="'nobody/nothing' is not complete in the hub's cache") as caught:
            load("nobody/nothing")
        assert "\n" not in str(caught.value)


def test_a_model_of_no_family_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline", "_diffusers_version": "0.42.1"}')
    with pytest.raises(InputError, match="is a AudioLDM2Pipeline, of no known family"):
        TTSnapPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "ZImageImg2Img",
            "also takes image, strength; for images from text alone use ZImagePipeline",
        ),
        ("Lumina", r"is a LuminaNextDiT2DModel; the nearest family is Lumina-Image 2.0 \(Lumina2Pipeline\)"),
        ("SanaSprint", "the denoiser of SanaPipeline, but its loop also takes max_timesteps, intermediate_timesteps$"),
        ("IF", "the denoiser of StableDiffusionPipeline, but no autoencoder"),
        ("SanaVideo", "of videos"),
        ("AudioLDM2", "none has such components"),
        ("DDPM", "none of them has"),
    ],
)
def test_why_a_pipeline_is_of_no_family(name, words):
    assert re.search(words, why_unknown(getattr(diffusers, f"{name}Pipeline"), FAMILIES))
