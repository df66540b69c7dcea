"""What the toolkit must know about a family of pipelines: one descriptor each, so that a new family is one more row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from diffkit.errors import InputError

__all__ = ["FAMILIES", "Autoencoder", "Family", "Pipeline", "Scheduler", "family_of"]

# diffusers registers a pipeline's modules by name at run time, and its schedulers share no typed base: no static type
# says what they have. These aliases name what is meant; `family_of` and `solver_of` check it.
Pipeline: TypeAlias = Any  # a diffusers.DiffusionPipeline
Scheduler: TypeAlias = Any  # a diffusers.SchedulerMixin
Autoencoder: TypeAlias = Any  # a diffusers.AutoencoderKL or AutoencoderTiny


@dataclass(frozen=True)
class Family:
    """A family of diffusers pipelines.

    Attributes:
        name: how messages call it.
        pipeline: name of the stock class; its subclasses belong to the family too.
        denoiser: the pipeline's attribute that holds the denoiser.
        embeddings: pairs (positive, negative) of the keywords that carry the encoded prompt, in the order in which
            the pipeline's ``encode_prompt`` returns positives and negatives.
        to_denoiser: (latents as the VAE encodes them, the VAE) -> latents as the denoiser sees them.
        to_vae: the inverse, by the very expression of the pipeline's own decoding.
        refusals: (pipeline) -> why its denoising cannot be cut, or None.
    """

    name: str
    pipeline: str
    denoiser: str
    embeddings: tuple[tuple[str, str], ...]
    to_denoiser: Callable[[Tensor, Autoencoder], Tensor]
    to_vae: Callable[[Tensor, Autoencoder], Tensor]
    refusals: Callable[[Pipeline], str | None]


def _nothing_to_refuse(pipe: Pipeline) -> str | None:
    return None


def _scaled(latents: Tensor, vae: Autoencoder) -> Tensor:
    scaled: Tensor = latents * vae.config.scaling_factor
    return scaled


def _unscaled(latents: Tensor, vae: Autoencoder) -> Tensor:
    unscaled: Tensor = latents / vae.config.scaling_factor
    return unscaled


FAMILIES: tuple[Family, ...] = (
    Family(
        name="Stable Diffusion 1/2",
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        embeddings=(("prompt_embeds", "negative_prompt_embeds"),),
        to_denoiser=_scaled,
        to_vae=_unscaled,
        refusals=_nothing_to_refuse,
    ),
)


def family_of(pipe: Pipeline) -> Family:
    """The family whose stock class ``type(pipe)`` is or derives from.

    Raises:
        InputError: no descriptor fits this pipeline.
    """
    ancestors = {base.__name__ for base in type(pipe).__mro__}
    for family in FAMILIES:
        if family.pipeline in ancestors:
            return family
    known = ", ".join(family.pipeline for family in FAMILIES)
    raise InputError(f"{type(pipe).__name__} belongs to no known family of pipelines; use one of: {known}.")
