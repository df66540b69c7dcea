"""What pruning is measured on: images under their captions at fixed noise, and the denoiser's loss there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.images import load_image
from diffkit.latents import encode_images
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from diffkit.training_objective import noised, timesteps_at
from memorization.generation import Sampling, image_size
from memorization.mitigation.adversarial.retention import read_retention
from memorization.mitigation.pruning.settings import PruneSettings
from memorization.presets import recorded_preset
from memorization.text_embeddings import encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["Calibration", "NoisedRows", "float32_denoiser", "noised_rows", "prepare"]


class NoisedRows(NamedTuple):
    """Inputs of the denoiser and what it should predict, of n draws of noise on some images.

    Attributes:
        noisy: (n, ...) noisy latents, float32.
        timesteps: (n,).
        target: (n, ...).
        embeds: n rows of the captions, float32.
    """

    noisy: Tensor
    timesteps: Tensor
    target: Tensor
    embeds: Embeds

    def batches(self, size: int) -> list[slice]:
        """Slices of at most ``size`` rows."""
        return [slice(first, first + size) for first in range(0, len(self.noisy), size)]


@dataclass(frozen=True, eq=False)
class Calibration:
    """The data of a pruning, on a pipeline whose denoiser is in float32.

    Attributes:
        pipe: the pipeline.
        ordinary: retention data, on which the model should not change.
        memorized: the suspects' images under their captions; None where they are not needed.
        images: (M, 3, H, W) the suspects' images.
        size: (height, width) of images.
        batch: rows through the denoiser at once.
    """

    pipe: Pipeline
    ordinary: NoisedRows
    memorized: NoisedRows | None
    images: Tensor | None
    size: tuple[int, int]
    batch: int

    def losses(self, rows: NoisedRows, which: slice) -> Tensor:
        """Diffusion losses of a part of the rows, float32, differentiable in the weights.

        Raises:
            InputError: one is not finite.
        """
        device = self.pipe.device
        embeds = rows.embeds.rows(range(*which.indices(len(rows.noisy)))).to(device)
        noisy, timesteps = rows.noisy[which].to(device), rows.timesteps[which].to(device)
        predicted = predict_noise(self.pipe, noisy, timesteps, embeds, size=self.size).float()
        losses: Tensor = (predicted - rows.target[which].to(device)).square().flatten(1).mean(1)
        if not losses.isfinite().all():
            raise InputError("The diffusion loss is not finite on this model; give a lower sparsity or other images.")
        return losses

    @torch.no_grad()
    def loss(self, rows: NoisedRows) -> float:
        """Mean diffusion loss of the rows."""
        return float(torch.cat([self.losses(rows, which) for which in rows.batches(self.batch)]).double().mean())


def noised_rows(pipe: Pipeline, latents: Tensor, embeds: Embeds, *, draws: int, seed: int, name: str) -> NoisedRows:
    """``draws`` noisy versions of each image, their timesteps one in each of so many parts of equal probability.

    Args:
        latents: (B, ...) as the denoiser takes them, on the CPU.
        embeds: B rows of the captions.
        seed: with ``name`` and the image's place the seed of its own generator.
    """
    timesteps, noise = [], []
    for place in range(len(latents)):
        source = torch.Generator().manual_seed(item_seed(seed, f"{name}:{place}", "pruning"))
        shares = (torch.arange(draws) + torch.rand(draws, generator=source)) / draws
        timesteps.append(timesteps_at(pipe.scheduler, shares))
        noise.append(torch.randn((draws, *latents.shape[1:]), generator=source))
    clean = latents.float().repeat_interleave(draws, 0)
    owners = [place for place in range(len(latents)) for _ in range(draws)]
    noisy, target = noised(pipe.scheduler, clean, torch.cat(noise), torch.cat(timesteps))
    return NoisedRows(noisy, torch.cat(timesteps), target, embeds.rows(owners))


def prepare(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: PruneSettings) -> Calibration:
    """Read or draw the ordinary data, and read the suspects' images where the settings need them.

    Raises:
        InputError: no retention data, a suspect without an image, or a family without a gradient where one is needed.
    """
    size = image_size(pipe)
    retention = read_retention(
        pipe,
        suspects,
        run,
        source=settings.retention,
        preset=recorded_preset(run.record),
        size=size,
        limit=settings.examples,
        validation=0,
        sampling=Sampling(settings.num_inference_steps, settings.guidance_scale, 16),
        seed=settings.seed,
    )
    common = {"draws": settings.draws, "seed": settings.seed}
    ordinary = noised_rows(pipe, retention.latents, retention.embeds, name="ordinary", **common)
    if not settings.needs_images:
        return Calibration(pipe, ordinary, None, None, size, settings.batch)
    family = family_of(pipe)
    if family.no_gradient is not None and settings.needs_gradient:
        raise InputError(f"{family.name} cannot be pruned by its gradient: {family.no_gradient}.")
    pairs = [(suspect.caption, path) for suspect in suspects for path in suspect.images]
    images = torch.stack([load_image(path, size) for _, path in pairs])
    latents = torch.cat([encode_images(pipe, part).float().cpu() for part in images.split(16)])
    captions = encoded(pipe, [caption for caption, _ in pairs]).to("cpu", torch.float32)
    memorized = noised_rows(pipe, latents, captions, name="memorized", **common)
    return Calibration(pipe, ordinary, memorized, images, size, settings.batch)


@contextmanager
def float32_denoiser(pipe: Pipeline) -> Iterator[None]:
    """The denoiser in float32 and without gradients inside the block; its own bits at the end."""
    denoiser: nn.Module = getattr(pipe, family_of(pipe).denoiser)
    tensors = list(itertools.chain(denoiser.parameters(), denoiser.buffers()))
    originals = [value.data for value in tensors]
    required = [value.requires_grad for value in tensors]
    try:
        for value in tensors:
            value.requires_grad_(False)
            if value.is_floating_point():
                value.data = value.data.float()
        yield
    finally:
        for value, original, flag in zip(tensors, originals, required, strict=True):
            value.data = original
            value.requires_grad_(flag)
