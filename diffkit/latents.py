"""Latents to images and back, by the law of the pipeline's family."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, family_of

__all__ = ["decode_latents", "encode_images"]


@torch.no_grad()
def encode_images(pipe: Pipeline, images: Tensor) -> Tensor:
    """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1], scaled as the denoiser sees them.

    The posterior's mode where the VAE has a posterior, so the result is not random. No gradient flows through.

    Raises:
        InputError: the images are no batch of RGB images.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"Expected images of shape (B, 3, H, W), got {tuple(images.shape)}.")
    vae = pipe.vae
    encoded = vae.encode(images.to(pipe._execution_device, vae.dtype) * 2 - 1)
    latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return family_of(pipe).to_denoiser(latents, vae)


def decode_latents(pipe: Pipeline, latents: Tensor, vae: Autoencoder | None = None) -> Tensor:
    """Images (B, 3, H, W), float32 in [0, 1], of latents (B, C, h, w); differentiable.

    The same arithmetic, in the same precision, as the pipeline's own decoding.

    Args:
        vae: another autoencoder of the same latents, for example an ``AutoencoderTiny`` for previews, with the scaling
            of its own configuration; None for the pipeline's own.
    """
    vae = pipe.vae if vae is None else vae
    unscaled = family_of(pipe).to_vae(latents.to(pipe._execution_device, vae.dtype), vae)
    decoded = vae.decode(unscaled, return_dict=False)[0]
    images: Tensor = pipe.image_processor.denormalize(decoded)
    return images.float()
