"""Latents to images and back, as the pipeline itself decodes and scales them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, any_family_of, as_size, family_of
from diffkit.families.base import Decoding, size_of_latents
from diffkit.finite import finite_rows

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["decode_latents", "decode_videos", "decoded_latents", "decoding_dtype", "encode_images", "spatial"]


@torch.no_grad()
def encode_images(pipe: Pipeline, images: Tensor) -> Tensor:
    """Latents of images (B, 3, H, W) in [0, 1], as the pipeline's loop carries them: scaled, packed where it packs.

    The posterior's mode where the VAE has a posterior, so the result is not random. No gradient flows through.

    Raises:
        InputError: the images are no batch of RGB images.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"Expected images of shape (B, 3, H, W), got {tuple(images.shape)}.")
    vae = pipe.vae
    family = family_of(pipe)
    pixels = images.to(pipe._execution_device, vae.dtype) * 2 - 1
    encoded = vae.encode(pixels.unsqueeze(2) if family.frames else pixels)
    if hasattr(encoded, "latent_dist"):
        latents = encoded.latent_dist.mode()
    else:
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return family.to_denoiser(pipe, latents, vae)


def decode_latents(
    pipe: Pipeline, latents: Tensor, vae: Autoencoder | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Images (B, 3, H, W), float32 in [0, 1], of latents as the pipeline's loop carries them; differentiable.

    The same arithmetic, in the same precision, as the pipeline's own decoding. An image is NaN as a whole where its
    latents or a decoded value are not finite: clipped to [0, 1] an infinite value would pass for white.

    Args:
        vae: another autoencoder of the same latents, for example an ``AutoencoderTiny`` for previews, with the scaling
            of its own configuration; None for the pipeline's own.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.
    """
    decoded = decoded_latents(pipe, latents, vae, size)
    images: Tensor = pipe.image_processor.denormalize(decoded).float()
    broken = ~(finite_rows(decoded) & finite_rows(latents).to(decoded.device))
    return images.masked_fill(broken.view(-1, 1, 1, 1), torch.nan) if bool(broken.any()) else images


def decode_videos(pipe: Pipeline, latents: Tensor, decoding: Decoding) -> Tensor:
    """Videos (B, frames, 3, H, W), float32 in [0, 1], of latents as the loop of a pipeline of videos carries them.

    The same arithmetic, in the same precision, as the pipeline's own decoding; what a decoder draws too. A video is NaN
    as a whole where its latents or a decoded value are not finite.

    Args:
        decoding: size of the videos, their generators, and the options of the call that the decoder reads.
    """
    decode = any_family_of(pipe).decode
    if decode is None:
        raise InputError(f"A {type(pipe).__name__} makes no videos; decode its latents by decode_latents.")
    decoded = decode(pipe, latents.to(pipe._execution_device), pipe.vae, decoding).transpose(1, 2)
    videos: Tensor = pipe.video_processor.denormalize(decoded).float()
    broken = ~(finite_rows(decoded) & finite_rows(latents).to(decoded.device))
    return videos.masked_fill(broken.view(-1, 1, 1, 1, 1), torch.nan) if bool(broken.any()) else videos


def decoded_latents(
    pipe: Pipeline, latents: Tensor, vae: Autoencoder | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """What the autoencoder returns, (B, 3, H, W) around [-1, 1] and not clipped; see :func:`decode_latents`."""
    vae, family = pipe.vae if vae is None else vae, any_family_of(pipe)
    if family.makes_videos:
        raise InputError(f"A {family.pipeline} makes videos; decode its latents by decode_videos.")
    pixels = size_of_latents(pipe, family, latents) if size is None else as_size(size)
    before, needed = vae.dtype, decoding_dtype(pipe, vae)
    try:
        if needed != before:
            vae.to(dtype=needed)
        unscaled = family.to_vae(pipe, latents.to(pipe._execution_device, needed), vae, pixels)
        decoded = vae.decode(unscaled, return_dict=False)[0]
    finally:
        if needed != before:
            vae.to(dtype=before)
    images: Tensor = decoded[:, :, 0] if family.frames else decoded
    return images


def decoding_dtype(pipe: Pipeline, vae: Autoencoder | None = None) -> torch.dtype:
    """The precision in which the stock pipeline decodes: float32 where the autoencoder would overflow in float16."""
    vae = pipe.vae if vae is None else vae
    upcast = any_family_of(pipe).upcasts and vae.dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    return torch.float32 if upcast else vae.dtype


def spatial(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Latents as a map (B, C, h, w): as they are, or unpacked, and then scaled as the autoencoder takes them."""
    if latents.ndim == 4:
        return latents
    family = family_of(pipe)
    unpacked = family.to_vae(pipe, latents, pipe.vae, size_of_latents(pipe, family, latents))
    return unpacked.squeeze(2) if family.frames else unpacked
