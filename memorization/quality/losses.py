"""Validation loss by noise level, and how far the unconditional branch has moved, on the same images and noise.

They show damage to the model early, and at which noise level: layout at high noise, detail at low. Each needs one
forward pass per draw and no generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from diffkit.latents import encode_images
from diffkit.seeds import item_seed
from diffkit.training_objective import noised, timestep_bins
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Losses(NamedTuple):
    """The denoiser's losses and predictions on validation images.

    Attributes:
        loss: (V, bins) float32 on the CPU, mean squared error against the model's own training target.
        unconditional: (V, bins, draws, ...) float32 on the CPU, the predictions for the empty prompt.
        bins: [low, high) training timesteps of each bin, from little noise to much.
    """

    loss: Tensor
    unconditional: Tensor
    bins: tuple[tuple[int, int], ...]


@torch.no_grad()
def validation_losses(
    pipe: DiffusionPipeline,
    images: Tensor,
    captions: Sequence[str],
    *,
    bins: int = 5,
    draws: int = 2,
    seed: int = 0,
    micro_batch: int = 16,
) -> Losses:
    """The diffusion loss of every image in every bin of timesteps, with and without its caption.

    The timestep is drawn uniformly within its bin, so that the mean over the bins is the loss under the uniform law:
    the training law of diffusion, and for a flow model one uniform in sigma. Image i's noise and timesteps depend on
    ``seed``, i, bin and draw alone: two models see the same.

    Args:
        pipe: a pipeline of a known family.
        images: (V, 3, H, W) in [0, 1].
        captions: V captions.
        bins: parts of the timestep range, of equal length.
        draws: pairs of noise and timestep for each image and bin.
        seed: of the noise.
        micro_batch: rows in one call of the denoiser.

    Raises:
        InputError: not as many captions as images, or no image.
    """
    if len(images) != len(captions) or not captions:
        raise InputError(f"Expected one caption per validation image, got {len(images)} and {len(captions)}.")
    bounds = timestep_bins(int(pipe.scheduler.config.num_train_timesteps), bins)
    clean = torch.cat([encode_images(pipe, part) for part in images.split(micro_batch)]).float()
    embeds, empty = encoded(pipe, captions), empty_text(pipe)
    size = (int(images.shape[-2]), int(images.shape[-1]))
    rows = [(i, b, d) for i in range(len(images)) for b in range(bins) for d in range(draws)]
    losses, blanks = [], []
    for first in range(0, len(rows), micro_batch):
        part = rows[first : first + micro_batch]
        drawn = [_draw(seed, row, bounds[row[1]], clean.shape[1:]) for row in part]
        timesteps = torch.tensor([t for t, _ in drawn], device=clean.device)
        picked = [row[0] for row in part]
        noisy, target = noised(
            pipe.scheduler, clean[picked], torch.stack([n for _, n in drawn]).to(clean.device), timesteps
        )
        noisy = noisy.to(pipe.dtype)
        predicted = predict_noise(pipe, noisy, timesteps, embeds.rows(picked), size=size).float()
        losses.append((predicted - target).square().flatten(1).mean(1).cpu())
        blank = predict_noise(pipe, noisy, timesteps, empty.expand(len(part)), size=size)
        blanks.append(blank.float().cpu())
    loss = torch.cat(losses).view(len(images), bins, draws).mean(2)
    return Losses(loss, torch.cat(blanks).unflatten(0, (len(images), bins, draws)), tuple(bounds))


def _draw(seed: int, row: tuple[int, int, int], bounds: tuple[int, int], shape: Sequence[int]) -> tuple[int, Tensor]:
    """Timestep and noise of one draw."""
    image, level, draw = row
    generator = torch.Generator().manual_seed(item_seed(seed, f"validation:{image}", f"bin:{level}", draw))
    timestep = int(torch.randint(*bounds, (1,), generator=generator))
    return timestep, torch.randn(tuple(shape), generator=generator)


def unconditional_drift(before: Losses, after: Losses) -> Tensor:
    """(V, bins) squared distance of the empty prompt's predictions over their mean square; 0 = unchanged.

    Raises:
        InputError: the two were not taken on the same images and noise.
    """
    if before.unconditional.shape != after.unconditional.shape or before.bins != after.bins:
        raise InputError("The two models' validation losses have other shapes; take both with the same settings.")
    moved = (after.unconditional - before.unconditional).square().flatten(2).mean(2)
    size = before.unconditional.square().flatten(2).mean(2).clamp(min=1e-12)
    drift: Tensor = moved / size
    return drift
