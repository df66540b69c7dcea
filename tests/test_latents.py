"""Latents and images, against the stock pipeline's own decoding and the VAE's own encoding."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.latents import decode_latents, encode_images


@pytest.mark.parametrize("vae", ["tiny", "kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_is_the_pipelines_own(vae, dtype):
    pipe = tiny_pipeline(vae=vae).to(dtype=dtype)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0}
    latents, images = (
        pipe("a", **options, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt")
    )
    with torch.no_grad():
        decoded = decode_latents(pipe, latents)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, images.float())
    assert decoded.std() > 0.05


def test_encoding_is_the_scaled_posterior_mode():
    images = torch.rand(2, 3, 64, 64)
    kl, tiny = tiny_pipeline(vae="kl"), tiny_pipeline()
    with torch.no_grad():
        mean = kl.vae.encode(images * 2 - 1).latent_dist.mean * kl.vae.config.scaling_factor
        plain = tiny.vae.encode(images * 2 - 1).latents * tiny.vae.config.scaling_factor
    torch.testing.assert_close(encode_images(kl, images), mean)
    torch.testing.assert_close(encode_images(tiny, images), plain)
    assert encode_images(tiny, images).shape == (2, 4, 16, 16)


def test_decoding_is_differentiable():
    latents = torch.randn(1, 4, 16, 16, requires_grad=True)
    decode_latents(tiny_pipeline(), latents).sum().backward()
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64)])
def test_refuses_what_is_no_batch_of_images(shape):
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        encode_images(tiny_pipeline(), torch.zeros(shape))
