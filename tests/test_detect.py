"""Detectors against an independent computation on the same pipeline."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.conditioning import encode_prompts
from diffkit.seeds import generators
from memorization.detection.noise_magnitude import NoiseMagnitude, noise_magnitude
from memorization.generation import Sampling, generate


def test_noise_magnitude_by_hand() -> None:
    conditional = torch.zeros(2, 1, 2, 2)
    conditional[1] = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
    assert noise_magnitude(conditional, torch.zeros(2, 1, 2, 2)).tolist() == [0.0, 5.0]
    half = noise_magnitude(torch.full((1, 4, 64, 64), 300.0).half(), torch.zeros(1, 4, 64, 64).half())
    assert half.item() == pytest.approx(300 * 128)  # float16 would overflow


def test_first_step_equals_two_calls_of_the_denoiser() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat", "a dog"], guidance=False).prompt_embeds
    empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    sampling = Sampling(num_inference_steps=3, guidance_scale=4.0, micro_batch=2)
    first = generate(pipe, embeds, empty, [1, 2], sampling=sampling, detector=NoiseMagnitude(steps=1)).scores
    latents = torch.cat([torch.randn(1, 4, 16, 16, generator=source) for source in generators([1, 2])])
    pipe.scheduler.set_timesteps(3)
    with torch.no_grad():
        one = pipe.unet(latents, pipe.scheduler.timesteps[0], embeds).sample
        none = pipe.unet(latents, pipe.scheduler.timesteps[0], empty.expand(2, -1, -1)).sample
    expected = (one - none).square().sum((1, 2, 3)).sqrt()
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    every = generate(pipe, embeds, empty, [1, 2], sampling=sampling, detector=NoiseMagnitude()).scores
    assert every is not None
    assert not torch.allclose(every, expected)  # three steps, averaged


def test_without_guidance_nothing_is_heard() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat"], guidance=False).prompt_embeds
    made = generate(pipe, embeds, embeds, [1], sampling=Sampling(2, 1.0, 1), detector=NoiseMagnitude())
    assert made.scores is None
    assert made.images.shape == (1, 3, 64, 64)


def test_listening_changes_nothing_and_leaves_no_hook() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat"], guidance=False).prompt_embeds
    plain = generate(pipe, embeds, embeds, [1], sampling=Sampling(2, 3.0, 1))
    heard = generate(pipe, embeds, embeds, [1], sampling=Sampling(2, 3.0, 1), detector=NoiseMagnitude())
    assert torch.equal(plain.images, heard.images)
    assert not pipe.unet._forward_hooks


def test_rows_do_not_depend_on_the_batch() -> None:
    """Each image equals the stock pipeline's own for that seed, whatever else is generated."""
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a cat", "a dog", "at"], guidance=False).prompt_embeds
    empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    many = generate(pipe, embeds, empty, [5, 6, 7], sampling=Sampling(3, 3.0, 2)).images
    for row, seed in enumerate([5, 6, 7]):
        stock = pipe(
            prompt_embeds=embeds[row : row + 1],
            negative_prompt_embeds=empty,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=3,
            guidance_scale=3.0,
            output_type="pt",
        ).images
        torch.testing.assert_close(many[row : row + 1], stock, atol=1e-4, rtol=0)
