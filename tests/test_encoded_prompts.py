"""Prompts that the caller has encoded; the reference is the stock pipeline's call with the same embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_search import brightness, shared_family

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.families import family_of, is_guided
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline

STEPS = 4
SPOKEN = {"negative_prompt", "prompt_2", "max_sequence_length", "clean_caption", "system_prompt"}
PLAIN = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
SEARCH = {"num_candidates": 3, "schedule": "1:0.4", "seed": 5, "micro_batch": 1}


@contextmanager
def freed(pipe: Any) -> Iterator[Any]:
    """Meanwhile without text encoders."""
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
    for name in encoders:
        setattr(pipe, name, None)
    try:
        yield pipe
    finally:
        for name, part in encoders.items():
            setattr(pipe, name, part)


def encoded(pipe: Any, options: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """The pipeline's own keywords, one row a prompt."""
    guided = is_guided(pipe, options.get("guidance_scale"), options)
    return encode_prompts(pipe, prompts, options.get("negative_prompt"), guidance=guided, options=options).kwargs()


def row(value: Any, index: int) -> Any:
    return value[index : index + 1]


@pytest.mark.parametrize("name", [name for name in FAMILY_ROWS if name != "hidream"])  # whose are refused
def test_the_winner_is_the_stock_image_of_the_same_embeddings(name):
    """Of several prompts of the same length, without text encoders."""
    pipe, family = shared_family(name), FAMILY_ROWS[name]
    given = {"num_inference_steps": STEPS, **family.options, **family.guided}
    embeds = encoded(pipe, given, ["a dog", "a cat"])
    options = {key: value for key, value in given.items() if key not in SPOKEN} | dict(family_of(pipe).fixed)
    with freed(pipe):
        out = TTSnapPipeline.from_pipe(pipe, reward=brightness)(**embeds, **options, **SEARCH)
        for index, (image, seed) in enumerate(zip(out.images, out.seeds, strict=True)):
            alone = {key: row(value, index) for key, value in embeds.items()}
            reference = pipe(**alone, **options, generator=generators([seed])[0]).images[0]
            assert np.array_equal(np.asarray(image), np.asarray(reference)), index
    assert out.ledger.encoded == 0
    assert out.ledger.flops.encode == 0.0
    assert out.ledger.rows_per_call == family.passes
    assert [look.prompt for look in out.trace] == [0, 1, 0, 1]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("euler")


def image_of(stock: Any, seed: int, prompt: str | None = None, **options: Any) -> np.ndarray:
    return np.asarray(stock(prompt, **PLAIN, **options, generator=generators([seed])[0]).images[0])


def test_one_of_both_may_be_text(pipe):
    search, embeds = TTSnapPipeline.from_pipe(pipe, reward=brightness), encoded(pipe, PLAIN, ["a dog"])
    for prompt, options, texts in [
        (None, {"prompt_embeds": embeds["prompt_embeds"], "negative_prompt": "cat"}, 1),
        (None, {"prompt_embeds": embeds["prompt_embeds"]}, 1),
        ("a dog", {"negative_prompt_embeds": embeds["negative_prompt_embeds"] + 1}, 1),
    ]:
        out = search(prompt, **options, **PLAIN, **SEARCH)
        assert np.array_equal(np.asarray(out.images[0]), image_of(pipe, out.seeds[0], prompt, **options)), options
        assert out.ledger.encoded == texts


def test_an_encoder_that_the_stock_pipeline_can_do_without():
    sd3 = family_pipeline("sd3")
    sd3.text_encoder_3 = None
    options = {"num_inference_steps": STEPS, "max_sequence_length": 8}
    out = TTSnapPipeline.from_pipe(sd3, reward=brightness)("a dog", **options, **SEARCH)
    reference = sd3("a dog", **options, generator=generators(out.seeds)[0]).images[0]
    assert np.array_equal(np.asarray(out.images[0]), np.asarray(reference))


def test_the_reward_reads_the_words_that_it_is_given(pipe):
    read: list[str] = []

    def reward(images, prompts):
        read.extend(prompts)
        return brightness(images, prompts)

    search, embeds = TTSnapPipeline.from_pipe(pipe, reward=reward), encoded(pipe, PLAIN, ["a dog", "a cat"])
    for given, words in [
        ({"reward_prompts": ["red", "blue"]}, {"red", "blue"}),
        ({"reward_prompts": "red"}, {"red"}),
        ({}, {""}),
    ]:
        read.clear()
        search(**embeds, **given, **PLAIN, num_candidates=1, seed=1)
        assert set(read) == words
    read.clear()
    search("a dog", reward_prompts="a good dog", **PLAIN, num_candidates=1, seed=1)
    assert set(read) == {"a good dog"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": "a dog"}, "Give prompt or prompt_embeds, not both; the words that the reward reads are"),
        ({"negative_prompt": "cat"}, "Give negative_prompt or negative_prompt_embeds, not both"),
        (
            {"prompt_embeds": None, "negative_prompt_embeds": None},
            "Give a prompt, or what is encoded already: prompt",
        ),
        ({"prompt_embeds": torch.zeros(16, 32)}, r"one row for each prompt, of 3 dimensions, got a Tensor of shape"),
        ({"prompt_embeds": [torch.zeros(16, 32)]}, "one row for each prompt, of 3 dimensions, got a list"),
        ({"prompt_embeds": torch.zeros(2, 16, 32)}, "Got 1 encoded negative prompts for 2 prompts"),
        ({"prompt_embeds": torch.zeros(1, 8, 32)}, "encode both alike"),
        ({"reward": "lab"}, "The reward 'lab' reads the prompt, and prompt_embeds are no words; give the words as"),
        ({"reward_prompts": ["a", "b"]}, "one for each of 1 prompts; got 2"),
    ],
)
def test_what_does_not_belong_together_is_refused(pipe, change, sentence):
    options = {**encoded(pipe, PLAIN, ["a dog"]), **PLAIN, **SEARCH, **change}
    with pytest.raises(InputError, match=sentence):
        TTSnapPipeline.from_pipe(pipe, reward=brightness)(**options)


def test_a_part_of_the_encoded_prompt_is_missing():
    sdxl = shared_family("sdxl")
    embeds = encoded(sdxl, PLAIN, ["a dog"])
    del embeds["pooled_prompt_embeds"]
    with pytest.raises(InputError, match="encoded prompts of a StableDiffusionXLPipeline: give pooled_prompt_embeds"):
        TTSnapPipeline.from_pipe(sdxl, reward=brightness)(**embeds, **PLAIN)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux", "pixart-sigma"])
def test_without_text_encoder_or_embeddings(name):
    sentence = "has no text_encoder.* to encode text with; give prompt_embeds"
    with freed(shared_family(name)) as pipe, pytest.raises(InputError, match=sentence):
        search = TTSnapPipeline.from_pipe(pipe, reward=brightness)
        search("a dog", **FAMILY_ROWS[name].options, num_inference_steps=STEPS)


def test_a_folder_is_loaded_without_its_text_encoder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    search = TTSnapPipeline.from_pretrained(tmp_path, text_encoder=None, tokenizer=None, reward=brightness)
    out = search(**encoded(pipe, PLAIN, ["a dog"]), **PLAIN, **SEARCH)
    assert np.array_equal(np.asarray(out.images[0]), image_of(pipe, out.seeds[0], "a dog"))
