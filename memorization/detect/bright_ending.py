"""Bright ending: at the last step the end token looks where the image is memorized.

Chen et al., arXiv 2410.21665. The cross-attention map m of the end token at the final step, mean of the first two
layers of the down path, is a mask of the memorized region; weighting the text-conditional noise with it gives the
score ``mean_t || (eps(x_t, c) - eps(x_t, empty)) * m ||_2 / mean(m)``.

Where we differ: maps are interpolated bilinearly to the latent's size before their mean; "the first two layers" are
the first two cross-attention layers in the order of execution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import ScoringError
from memorization.detect import Need
from memorization.detect.attention_maps import record_attention
from memorization.detect.listening import denoise, end_positions, require_guidance
from memorization.detect.noise_magnitude import record_noise_differences
from memorization.detect.probe import Batch, in_batches, norms

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generate import Sampling

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
        here = (-(-size[0] // round(shrink)), -(-size[1] // round(shrink)))
        chosen = layer[torch.arange(len(layer)), :, ends.to(layer.device)].unflatten(1, here)[:, None]
        maps.append(torch.nn.functional.interpolate(chosen, size, mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(maps).mean(0)


class BrightEnding:
    """:func:`masked_magnitude` of a whole guided generation under its own :func:`end_token_map`."""

    name = "bright_ending"
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"attention", "trajectory"})

    def scores(
        self,
        pipe: DiffusionPipeline,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """See :class:`memorization.detect.Detector`."""
        require_guidance(self.name, sampling)

        def score(batch: Batch) -> Tensor:
            positions = end_positions(self.name, ends, batch)
            with (
                record_attention(pipe, lambda index, p: p if index < LAYERS else None) as calls,
                record_noise_differences(pipe) as differences,
            ):
                denoise(pipe, batch, sampling)
            if not differences:
                raise ScoringError(f"{self.name} heard no guided step of this pipeline")
            size = (int(batch.latents.shape[-2]), int(batch.latents.shape[-1]))
            return masked_magnitude(torch.stack(differences), end_token_map(calls[-1], positions, size))

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling.micro_batch, score)

    def cost(self, sampling: Sampling) -> float:
        """A whole guided generation."""
        return 2.0 * sampling.num_inference_steps
