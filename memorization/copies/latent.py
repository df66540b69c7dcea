"""Latent similarity: whether two pictures have the same layout in the audited model's own latents.

Needs no weights but the pipeline's autoencoder: both pictures are encoded, and their latents are compared by
:func:`~memorization.copies.tiled.tiled_correlation`, channel by channel, under every small shift and zoom. What the
autoencoder cannot represent anyway does not count against a copy. Never comparable across models: the name of the
autoencoder's class and its scaling stand in ``preprocessing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.families import default_size
from diffkit.latents import encode_images, spatial
from memorization.copies.tiled import CHUNK, shrink, tiled_correlation

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SPREAD = 5.0  # latents deviate by about 1, pixels by about 0.2: the floor for flat tiles is set for pixels


class LatentCorrelation:
    """Tiled correlation of latents as a copy detector.

    Args:
        pipe: its autoencoder makes the latents.
        threshold: similarity from which two pictures count as copies.
        micro_batch: pictures encoded at once.
    """

    name = "latent"

    def __init__(self, pipe: DiffusionPipeline, threshold: float = 0.75, *, micro_batch: int = 8) -> None:
        self.pipe, self.threshold, self.micro_batch = pipe, threshold, micro_batch
        self.pixels = min(default_size(pipe))
        side = self.pixels // int(pipe.vae_scale_factor)
        self.side = min(44, 4 * (side // 4) + 4)  # the search over shifts takes 4, the rest divides by 4 tiles
        self.preprocessing = (
            f"squash to {self.pixels}x{self.pixels}, latents of {type(pipe.vae).__name__} (scaling "
            f"{pipe.vae.config.get('scaling_factor') or 1:g}), tiled correlation at {self.side}x{self.side}"
        )

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [-1, 1]; higher = more alike."""
        own, others = self._latents(images), self._latents(references)
        blocks = [tiled_correlation(own, block, side=self.side) for block in others.split(CHUNK)]
        return torch.cat(blocks, 1)

    def _latents(self, images: Tensor) -> Tensor:
        squashed = shrink(images, self.pixels)
        blocks = [encode_images(self.pipe, part) for part in squashed.split(self.micro_batch)]
        parts = [spatial(self.pipe, block).float().cpu() for block in blocks]
        return torch.cat(parts) / SPREAD
