"""What pipelines with flow matching share: the shift of the noise levels with the number of tokens, and packing."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from diffkit.families.base import Autoencoder, Pipeline, Size, shifted, unshifted

__all__ = ["linear_sigmas", "pack", "packed", "patches", "shift_of_tokens", "unpack", "unpacked"]


def shift_of_tokens(pipe: Pipeline, tokens: int, *, max_shift: float = 1.15) -> float:
    """mu, how far the noise levels shift for so many tokens, from the scheduler's configuration."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipe.scheduler.config
    mu: float = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", max_shift),
    )
    return mu


def linear_sigmas(pipe: Pipeline, steps: int, tokens: int) -> dict[str, object]:
    """Noise levels 1, 1 - 1/T, ..., 1/T before the shift, and the shift for so many tokens."""
    return {"sigmas": np.linspace(1.0, 1 / steps, steps), "mu": shift_of_tokens(pipe, tokens)}


def patches(pipe: Pipeline, size: Size) -> int:
    """Tokens of an image whose latents are packed two by two."""
    cell = pipe.vae_scale_factor * 2
    return int((size.height // cell) * (size.width // cell))


def pack(pipe: Pipeline, latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4 C)."""
    rows, channels, height, width = latents.shape
    squares = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(rows, (height // 2) * (width // 2), channels * 4)


def unpack(pipe: Pipeline, latents: Tensor, size: Size) -> Tensor:
    """The inverse of :func:`pack`."""
    rows, _, channels = latents.shape
    height, width = (2 * (side // (pipe.vae_scale_factor * 2)) for side in size)
    squares = latents.view(rows, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(rows, channels // 4, height, width)


def packed(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    """Shifted, scaled and packed."""
    return pack(pipe, shifted(pipe, latents, vae))


def unpacked(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    """The inverse of :func:`packed`."""
    return unshifted(pipe, unpack(pipe, latents, size), vae, size)
