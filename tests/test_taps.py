"""Taps see what the pipeline itself computes."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.conditioning import Conditioning, Embeds, encode_prompts
from diffkit.errors import InputError
from diffkit.taps import activations, predictions

STEPS, GUIDANCE = 5, 3.0


def test_predictions_are_those_of_the_stock_loop():
    """Reference: the stock pipeline's own first denoiser call, taken by a hook."""
    pipe, seen = tiny_pipeline(), []
    handle = pipe.unet.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((args, kwargs, output[0])), with_kwargs=True
    )
    pipe("a dog", num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(0))
    handle.remove()
    (batch, timestep), kwargs, output = seen[0]
    conditioning = encode_prompts(pipe, ["a dog"])
    assert torch.equal(kwargs["encoder_hidden_states"][1:], conditioning.prompt_embeds)
    assert torch.equal(kwargs["encoder_hidden_states"][:1], conditioning.negative_prompt_embeds)
    with torch.no_grad():
        found = predictions(pipe, batch[:1], timestep, conditioning)
    assert torch.equal(found.unconditional, output[:1])
    assert torch.equal(found.conditional, output[1:])
    expected = (found.conditional - found.unconditional).square().sum().sqrt()
    assert found.text_magnitude().item() == pytest.approx(expected.item(), rel=1e-5)
    stepped = pipe.scheduler.step(found.conditional, timestep, batch[:1]).pred_original_sample
    torch.testing.assert_close(found.x0, stepped)


def test_gradients_reach_the_embeddings():
    pipe, conditioning = tiny_pipeline(), encode_prompts(tiny_pipeline(), ["a"])
    embeds = conditioning.prompt_embeds.clone().requires_grad_()
    pair = Conditioning(Embeds(embeds), conditioning.negative)
    predictions(pipe, torch.randn(1, 4, 16, 16), torch.tensor(500), pair).text_magnitude().sum().backward()
    assert embeds.grad.abs().sum() > 0


def test_activations_of_layers_by_name():
    pipe = tiny_pipeline()
    layers = [name for name, _ in pipe.unet.named_modules() if name.endswith("attn2.to_v")]
    with activations(pipe.unet, "*attn2.to_v") as seen:
        pipe("a dog", num_inference_steps=STEPS, guidance_scale=GUIDANCE)
    assert sorted(seen) == sorted(layers)
    assert all(len(calls) == STEPS for calls in seen.values())
    with activations(pipe.unet, "*attn2.to_v", keep=1) as last:
        pipe("a dog", num_inference_steps=2, guidance_scale=GUIDANCE)
    assert all(len(calls) == 1 for calls in last.values())
    assert all(len(calls) == STEPS for calls in seen.values())  # the first hooks are gone


def test_refusals():
    with pytest.raises(InputError, match="No layer"), activations(tiny_pipeline().unet, "nothing*"):
        pass
    pipe = tiny_pipeline()
    with pytest.raises(InputError, match="guidance=True"):
        predictions(pipe, torch.zeros(1, 4, 16, 16), torch.tensor(1), encode_prompts(pipe, ["a"], guidance=False))
