"""Generate from text embeddings in constant-size batches: a row never depends on who its neighbours are."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.latents import decode_latents, encode_images
from diffkit.seeds import generators
from memorization.detect import ListeningDetector

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Sampling(NamedTuple):
    """How images are generated, in the audit and for its triggers."""

    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    micro_batch: int = 16


class Generated(NamedTuple):
    """(n, 3, H, W) float32 images in [0, 1], and a detector's (n,) scores where it was asked and could hear."""

    images: Tensor
    scores: Tensor | None


def item_seed(run_seed: int, key: str, purpose: str, index: int = 0) -> int:
    """Seed in [0, 2**63) of one draw: SHA-256 of run seed, item, purpose and index, joined by line feeds.

    It depends on the item's own key, not on its place in a list, so adding or removing items moves nobody's noise.
    """
    digest = sha256("\n".join((str(run_seed), key, purpose, str(index))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline,
    prompt_embeds: Tensor,
    negative_prompt_embeds: Tensor,
    seeds: Sequence[int],
    *,
    sampling: Sampling,
    detector: ListeningDetector | None = None,
) -> Generated:
    """One image per row, each from its own CPU generator, through the unmodified pipeline.

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
        prompt_embeds: (n, L, D).
        negative_prompt_embeds: (1, L, D), the same for all.
        seeds: n seeds.
        sampling: steps, guidance, and the constant batch size; the last batch is filled up by repetition.
        detector: listens to the denoiser, if given.
    """
    size = sampling.micro_batch
    images, scores = [], []
    for first in range(0, len(seeds), size):
        real = min(size, len(seeds) - first)
        rows = [first + min(i, real - 1) for i in range(size)]
        embeds = prompt_embeds[rows].to(pipe.device, pipe.dtype)
        negative = negative_prompt_embeds.to(embeds).expand(size, -1, -1)
        batch, heard = _call(pipe, embeds, negative, generators(seeds[row] for row in rows), sampling, detector)
        images.append(batch[:real])
        scores.append(heard[:real] if heard is not None else None)
    known = [part for part in scores if part is not None]
    return Generated(torch.cat(images), torch.cat(known) if len(known) == len(scores) and known else None)


def _call(
    pipe: DiffusionPipeline,
    embeds: Tensor,
    negative: Tensor,
    sources: list[torch.Generator],
    sampling: Sampling,
    detector: ListeningDetector | None,
) -> tuple[Tensor, Tensor | None]:
    arguments = {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative if sampling.guidance_scale > 1 else None,
        "generator": sources,
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
        "output_type": "pt",
    }
    if detector is None:
        return pipe(**arguments).images.float().cpu(), None
    with detector.record(pipe) as recorded:
        images = pipe(**arguments).images.float().cpu()
    return images, detector.score(recorded)


@torch.no_grad()
def round_trip(pipe: DiffusionPipeline, images: Tensor) -> Tensor:
    """(n, 3, H, W) images through the model's own autoencoder and back, one at a time: the best it could draw."""
    parts = [decode_latents(pipe, encode_images(pipe, image[None].to(pipe.device))) for image in images]
    return torch.cat(parts).cpu()
