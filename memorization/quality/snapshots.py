"""Snapshots: one model's images and losses on held-out prompts, to be compared with another model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.latents import encode_images
from diffkit.rewards import load_reward
from diffkit.rewards.base import RewardLike, score_checked
from diffkit.seeds import item_seed
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.finite import finite_similarity
from memorization.generation import Sampling, generate
from memorization.quality.losses import Losses, validation_losses
from memorization.quality.settings import QualitySettings
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Validation(NamedTuple):
    """(V, 3, H, W) images in [0, 1] with their captions, for the loss; ``source``: where they are from."""

    images: Tensor
    captions: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Snapshot:
    """One model's images and losses on the prompts, to be compared with another model's.

    Attributes:
        images: (P, S, 3, H, W) float32 in [0, 1]; ``latents``: (P, S, ...), the images as its VAE encodes them.
        similarity: (P,) mean pairwise similarity within a prompt, NaN with one seed; higher = less diverse.
        alignment: reward name -> (P, S) scores; ``higher_is_better`` gives their direction.
        losses: on the validation images.
    """

    prompts: tuple[str, ...]
    settings: QualitySettings
    images: Tensor
    latents: Tensor
    similarity: Tensor
    detector: str
    alignment: dict[str, Tensor]
    higher_is_better: dict[str, bool]
    validation: Validation
    losses: Losses


@torch.no_grad()
def snapshot(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    settings: QualitySettings | None = None,
    *,
    rewards: Sequence[RewardLike] = (),
    copies: str | CopyDetector = "tiled",
    validation: Validation | None = None,
) -> Snapshot:
    """Generate from held-out prompts and measure; see :class:`Snapshot`.

    Args:
        pipe: a pipeline of a known family, in the state to be measured.
        prompts: different, held out from whatever the mitigation was fitted on.
        rewards: text alignment, by registered name or as objects; none gives no alignment.
        copies: the copy detector that measures similarity within a prompt.
        validation: images with captions; None takes the first image of each prompt as this model makes it. For the
            second model pass the first one's ``validation``.

    Raises:
        InputError: no prompts, or a prompt or reward twice.
    """
    settings = settings or QualitySettings()
    prompts = tuple(prompts)
    if not prompts or len(set(prompts)) != len(prompts):
        raise InputError("Expected a non-empty list of different prompts for the quality report.")
    images = _images(pipe, prompts, settings)
    detector = load_copy_detector(copies)
    scorers = [load_reward(reward) for reward in rewards]
    if len({scorer.name for scorer in scorers}) < len(scorers):
        raise InputError(f"Expected rewards of different names, got {', '.join(scorer.name for scorer in scorers)}.")
    n = settings.seeds_per_prompt
    repeated = [prompt for prompt in prompts for _ in range(n)]
    flat = images.flatten(0, 1)
    scores = {scorer.name: score_checked(scorer, flat, repeated).values.view(-1, n) for scorer in scorers}
    validation = validation or Validation(images[:, 0], prompts, "made by the model before, first seed of each prompt")
    return Snapshot(
        prompts=prompts,
        settings=settings,
        images=images,
        latents=_latents(pipe, flat, settings.micro_batch).unflatten(0, (-1, n)),
        similarity=torch.stack([pairwise_similarity(detector, group) for group in images]),
        detector=f"{detector.name}: {detector.preprocessing}",
        alignment=scores,
        higher_is_better={scorer.name: scorer.higher_is_better for scorer in scorers},
        validation=validation,
        losses=validation_losses(
            pipe,
            validation.images,
            validation.captions,
            bins=settings.bins,
            draws=settings.draws,
            seed=settings.seed,
            micro_batch=settings.micro_batch,
        ),
    )


def pairwise_similarity(detector: CopyDetector, images: Tensor) -> Tensor:
    """Mean similarity of all pairs of (S, 3, H, W) images, a scalar; NaN with fewer than two."""
    if len(images) < 2:
        return torch.tensor(float("nan"))
    apart = ~torch.eye(len(images), dtype=torch.bool)
    similarity: Tensor = finite_similarity(detector, images, images)[apart].mean()
    return similarity


def _images(pipe: DiffusionPipeline, prompts: Sequence[str], settings: QualitySettings) -> Tensor:
    n = settings.seeds_per_prompt
    embeds, negative = encoded(pipe, prompts).repeat(n), empty_text(pipe)
    seeds = [item_seed(settings.seed, prompt, "quality", i) for prompt in prompts for i in range(n)]
    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, settings.micro_batch)
    pipe.set_progress_bar_config(disable=True)
    images: Tensor = generate(pipe, embeds, negative, seeds, sampling=sampling).images.unflatten(0, (-1, n))
    return (images * 255).round() / 255  # as a file would have them, so that a snapshot can be kept


def _latents(pipe: DiffusionPipeline, images: Tensor, micro_batch: int) -> Tensor:
    return torch.cat([encode_images(pipe, part).float().cpu() for part in images.split(micro_batch)])
