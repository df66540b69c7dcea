"""Prompts are encoded once, as the stock pipeline encodes them."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError


def test_embeddings_are_the_pipelines_own():
    pipe = tiny_pipeline()
    found = encode_prompts(pipe, ["a dog", "cat", "a dog"], "at")
    for row, prompt in enumerate(["a dog", "cat", "a dog"]):
        with torch.no_grad():
            positive, negative = pipe.encode_prompt(prompt, "cpu", 1, True, "at")
        assert torch.equal(found.prompt_embeds[row : row + 1], positive)
        assert torch.equal(found.negative_prompt_embeds[row : row + 1], negative)
    assert not found.prompt_embeds.requires_grad


def test_each_distinct_text_is_encoded_once():
    pipe, seen = tiny_pipeline(), []
    pipe.text_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    encode_prompts(pipe, ["a", "dog", "a"], ["", "cat", ""])
    assert seen == [1] * 4
    encode_prompts(pipe, ["a", "a"], guidance=False)
    assert len(seen) == 5


def test_rows_and_repeats():
    found = encode_prompts(tiny_pipeline(), ["a", "cat"])
    assert torch.equal(found.rows([1, 1, 0]).prompt_embeds, found.prompt_embeds[[1, 1, 0]])
    assert torch.equal(found.repeat(2).negative_prompt_embeds, found.negative_prompt_embeds[[0, 0, 1, 1]])
    assert set(found.kwargs()) == {"prompt_embeds", "negative_prompt_embeds"}
    assert set(encode_prompts(tiny_pipeline(), ["a"], guidance=False).kwargs()) == {"prompt_embeds"}


def test_predicted_noise_is_differentiable_in_the_embeddings():
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a", "cat"]).prompt_embeds.clone().requires_grad_()
    noise = predict_noise(pipe, torch.randn(2, 4, 16, 16), torch.tensor([10, 900]), embeds)
    assert noise.shape == (2, 4, 16, 16)
    noise.square().sum().backward()
    assert (embeds.grad.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("prompts", "negatives"), [([], None), ("a", None), ([1], None), (["a"], ["b", "c"]), (["a", "b"], ["c"])]
)
def test_refusals(prompts, negatives):
    with pytest.raises(InputError):
        encode_prompts(tiny_pipeline(), prompts, negatives)
