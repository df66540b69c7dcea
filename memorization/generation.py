"""Generate from text embeddings in batches of constant size, so that no row depends on the others."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import default_size, family_of, refuse_pictures
from diffkit.families.base import stock_default
from diffkit.finite import NOT_FINITE, finite_rows
from diffkit.image_filters import unfiltered
from diffkit.interruption import DenoisingInterrupted, is_interrupted
from diffkit.latents import decode_latents, encode_images
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import generators
from diffkit.step_caches import refuse_step_caches
from diffkit.step_noise import refuse_unseeded_noise
from memorization.text_embeddings import Embedded, as_embeds

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Listener(Protocol):
    """A detector that scores a generation from the pipeline's own denoiser calls."""

    def record(self, pipe: DiffusionPipeline) -> AbstractContextManager[list[Tensor]]:
        """Record the pipeline's calls inside a ``with`` block; the list grows with each step."""
        ...

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of one pipeline call's samples, or None where nothing was recorded."""
        ...


class Sampling(NamedTuple):
    """How images are generated, in the audit and for its triggers; ``size`` (height, width), None = the model's own."""

    num_inference_steps: int = 25
    guidance_scale: float = 3.0
    micro_batch: int = 16
    size: tuple[int, int] | None = None


class Generated(NamedTuple):
    """(n, 3, H, W) float32 images in [0, 1], and a detector's (n,) scores, or None without one."""

    images: Tensor
    scores: Tensor | None


def is_guided(pipe: DiffusionPipeline, sampling: Sampling) -> bool:
    """Whether this generation uses classifier-free guidance."""
    options = {"negative_prompt": "", **_scales(pipe, sampling)}
    return bool(family_of(pipe).guided(pipe, sampling.guidance_scale, options))


def _scales(pipe: DiffusionPipeline, sampling: Sampling) -> dict[str, float]:
    """The guidance scale under the keyword of a pipeline that guides truly by default (Qwen-Image), else nothing."""
    default = stock_default(family_of(pipe), "true_cfg_scale")
    return {"true_cfg_scale": sampling.guidance_scale} if default is not None and default > 1 else {}


def call_arguments(
    pipe: DiffusionPipeline, embeds: Embeds, negative: Embeds, seeds: Sequence[int], sampling: Sampling
) -> dict[str, Any]:
    """Keyword arguments of the pipeline's own call for rows of embeddings, one CPU generator each.

    Raises:
        InputError: the scheduler would draw noise from none of these generators, or the pipeline needs a picture.
    """
    refuse_pictures(pipe)
    refuse_unseeded_noise(pipe)
    guided = is_guided(pipe, sampling)
    scales = _scales(pipe, sampling) or {"guidance_scale": sampling.guidance_scale}
    size = {} if sampling.size is None else {"height": sampling.size[0], "width": sampling.size[1]}
    return {
        **embeds.kwargs(),
        **(negative.kwargs("negative_") if guided else {}),
        "generator": generators(seeds),
        "num_inference_steps": sampling.num_inference_steps,
        **scales,
        **size,
        **family_of(pipe).fixed,
    }


def generated_latents(pipe: DiffusionPipeline, arguments: dict[str, Any], steps: int | None = None) -> Tensor:
    """Latents of one call of the pipeline.

    Args:
        arguments: of the call, as :func:`call_arguments` gives them.
        steps: the generation ends after so many, where the pipeline takes a step callback.

    Raises:
        DenoisingInterrupted: somebody else has stopped it.
    """
    reached = False

    def stop(pipe: DiffusionPipeline, index: int, _timestep: Tensor, _kwargs: dict[str, Any]) -> dict[str, Any]:
        nonlocal reached
        if steps is not None and index + 1 >= steps:
            reached = pipe._interrupt = True  # the pipeline's own switch; its next call resets it
        return {}

    keywords = inspect.signature(type(pipe).__call__).parameters
    callback = {"callback_on_step_end": stop} if "callback_on_step_end" in keywords else {}
    latents: Tensor = pipe(**arguments, output_type="latent", **callback).images
    if is_interrupted(pipe) and not reached:
        raise DenoisingInterrupted(pipe)
    return latents


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline,
    prompt_embeds: Embedded,
    negative_prompt_embeds: Embedded,
    seeds: Sequence[int],
    *,
    sampling: Sampling,
    detector: Listener | None = None,
) -> Generated:
    """One image per row, each from its own CPU generator, through the unmodified pipeline without its image filters.

    A safety checker would blacken what is measured or trained on; it is off here and put back afterwards. An image that
    is not finite stays so: it is for the caller to report it as unknown.

    Args:
        pipe: a pipeline of a known family.
        prompt_embeds: n rows, or (n, L, D) where the family has no companions.
        negative_prompt_embeds: one row, the same for all; left out where the pipeline does not guide.
        seeds: n seeds.
        sampling: steps, guidance, and the constant batch size; the last batch is filled up by repetition.
        detector: listens to the denoiser, if given.

    Raises:
        InputError: the denoiser has a step cache, by which a row would depend on the others.
        DenoisingInterrupted: ``pipe._interrupt`` was set meanwhile.
    """
    refuse_step_caches(pipe)
    size = sampling.micro_batch
    rows_of = as_embeds(prompt_embeds)
    negative = as_embeds(negative_prompt_embeds).to(pipe.device, pipe.dtype).expand(size)
    images, scores = [], []
    for first in range(0, len(seeds), size):
        real = min(size, len(seeds) - first)
        rows = [first + min(i, real - 1) for i in range(size)]
        embeds = rows_of.rows(rows).to(pipe.device, pipe.dtype)
        arguments = call_arguments(pipe, embeds, negative, [seeds[row] for row in rows], sampling)
        batch, values = _call(pipe, arguments, detector)
        images.append(batch[:real])
        scores.append(values[:real] if values is not None else None)
    scored = [part for part in scores if part is not None]
    return Generated(torch.cat(images), torch.cat(scored) if len(scored) == len(scores) and scored else None)


def _call(
    pipe: DiffusionPipeline, arguments: dict[str, Any], detector: Listener | None
) -> tuple[Tensor, Tensor | None]:
    with unfiltered(pipe), nullcontext([]) if detector is None else detector.record(pipe) as recorded:
        images = pipe(**arguments, output_type="pt").images.float().cpu()
    if is_interrupted(pipe):
        raise DenoisingInterrupted(pipe)
    if detector is None:
        return images, None
    return images, detector.score(recorded)


def require_finite(images: Tensor, which: str) -> Tensor:
    """The images, which are to be trained on or compared with.

    Args:
        which: whose images they are, for the message.

    Raises:
        InputError: one of them holds NaN or infinity.
    """
    broken = int((~finite_rows(images)).sum())
    if broken:
        raise InputError(f"{broken} of {len(images)} images {which} cannot be used: {NOT_FINITE}.")
    return images


@torch.no_grad()
def round_trip(pipe: DiffusionPipeline, images: Tensor) -> Tensor:
    """(n, 3, H, W) images through the model's own autoencoder and back, one at a time: the best it can reproduce."""
    size = (int(images.shape[-2]), int(images.shape[-1]))
    parts = [decode_latents(pipe, encode_images(pipe, image[None].to(pipe.device)), size=size) for image in images]
    return torch.cat(parts).cpu()


def image_size(pipe: DiffusionPipeline, size: tuple[int, int] | None = None) -> tuple[int, int]:
    """(height, width) in pixels of the images that are made: ``size`` if given, else the pipeline's own default.

    Raises:
        InputError: the family makes no images of that size.
    """
    cell = family_of(pipe).multiple(pipe)
    if size is not None and any(side % cell or side < cell for side in size):
        raise InputError(f"Expected height and width to be multiples of {cell}, got {size[0]}x{size[1]}.")
    if size is not None:
        return size
    size = default_size(pipe)
    return size.height, size.width
