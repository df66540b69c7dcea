"""Bright ending: the end token's attention at the last step is high where the image is memorized.

Chen et al., arXiv 2410.21665. The cross-attention map m of the end token at the final step, mean of the first two
layers of the down path, is a mask of the memorized region; weighting the text-conditional noise with it gives the
score ``mean_t || (eps(x_t, c) - eps(x_t, empty)) * m ||_2 / mean(m)``.

Where we differ: maps are interpolated bilinearly to the latent's size before their mean; "the first two layers" are
the first two cross-attention layers in the order of execution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memorization.detection.attention_maps import record_attention
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import DenoiserBatch, norms
from memorization.detection.generation_detector import Finish, GenerationDetector, end_positions, require_guidance
from memorization.detection.noise_magnitude import record_noise_differences

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling

LAYERS = 2


def masked_magnitude(differences: Tensor, mask: Tensor) -> Tensor:
    """``mean_t || difference_t * mask ||_2 / mean(mask)``.

    Args:
        differences: (T, B, C, h, w) noise with the caption minus noise without, at every step.
        mask: (B, h, w), >= 0; a constant mask of any height gives the plain noise magnitude.

    Returns:
        (B,) float32, >= 0; higher = more likely memorized. NaN where the mask is zero everywhere.
    """
    weight = mask.float() / mask.float().mean((1, 2), keepdim=True)
    return torch.stack([norms(step * weight[:, None]) for step in differences.float()]).mean(0)


def end_token_map(layers: Sequence[Tensor], ends: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, h, w) mean over layers of the end token's attention, interpolated to ``size``.

    Args:
        layers: (B, HW, L) probabilities of each layer, HW any multiple of the latent's shape.
        ends: (B,) position of the end token.
        size: (h, w) of the latents.
    """
    maps = []
    for layer in layers:
        shrink = (size[0] * size[1] / layer.shape[1]) ** 0.5
        shape = (-(-size[0] // round(shrink)), -(-size[1] // round(shrink)))
        chosen = layer[torch.arange(len(layer)), :, ends.to(layer.device)].unflatten(1, shape)[:, None]
        maps.append(torch.nn.functional.interpolate(chosen, size, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(maps).mean(0)


class BrightEnding(GenerationDetector):
    """:func:`masked_magnitude` of a whole guided generation under its own :func:`end_token_map`."""

    name = "bright_ending"
    needs: frozenset[Need] = frozenset({"attention", "end_token", "trajectory", "unconditional"})

    def __init__(self) -> None:
        super().__init__()

    @contextmanager
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> Iterator[Finish]:
        """See :class:`memorization.detection.generation_detector.GenerationDetector`."""
        require_guidance(self.name, pipe, sampling)
        positions = end_positions(self.name, ends, batch)
        size = (int(batch.latents.shape[-2]), int(batch.latents.shape[-1]))
        with (
            record_attention(pipe, lambda index, p: p if index < LAYERS else None) as calls,
            record_noise_differences(pipe) as differences,
        ):
            yield lambda _latents: masked_magnitude(torch.stack(differences), end_token_map(calls[-1], positions, size))
