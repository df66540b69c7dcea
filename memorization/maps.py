"""Latents as pictures: what is compared place by place must know where a token stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from diffkit.families import family_of
from diffkit.families.base import size_of_latents

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["spatial"]


def spatial(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Latents as a map (B, C, h, w): as they are, or unpacked, and then scaled as the autoencoder takes them."""
    if latents.ndim == 4:
        return latents
    family = family_of(pipe)
    unpacked = family.to_vae(pipe, latents, pipe.vae, size_of_latents(pipe, family, latents))
    return unpacked.squeeze(2) if family.frames else unpacked
