"""What families share whose pipelines begin from a picture: image-to-image, inpainting and editing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from diffkit.families.base import Family, Pipeline, Size

__all__ = [
    "CROP",
    "MADE",
    "PARTS",
    "Refusal",
    "cell_noise_shape",
    "from_picture",
    "map_noise_shape",
    "refusing",
    "size_of_picture",
]

Refusal = Callable[[Pipeline, Mapping[str, object], Size], str | None]

CROP = {
    "padding_mask_crop": "padding_mask_crop pastes the finished image into the picture, which no look would see; crop "
    "the picture yourself"
}
MADE = {"masked_image_latents": "masked_image_latents are made of image and mask_image by the pipeline; give these two"}
PARTS = {
    "denoising_start": "denoising_start leaves out steps by a count of its own; use strength",
    "denoising_end": "denoising_end counts the steps of the whole denoising; leave it out",
}


def size_of_picture(pipe: Pipeline, picture: Any) -> Size:
    """The size that the pipeline gives to a picture; latents stand for the image that they decode to."""
    if isinstance(picture, Tensor) and picture.ndim == 4 and picture.shape[1] == pipe.vae.config.latent_channels:
        return Size(picture.shape[2] * pipe.vae_scale_factor, picture.shape[3] * pipe.vae_scale_factor)
    height, width = pipe.image_processor.get_default_height_width(picture)
    return Size(int(height), int(width))


def map_noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w), channels as the VAE has them: the denoiser may take more."""
    factor = pipe.vae_scale_factor
    return (pipe.vae.config.latent_channels, size.height // factor, size.width // factor)


def cell_noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w) before packing, channels as the VAE has them."""
    cell = pipe.vae_scale_factor * 2
    return (pipe.vae.config.latent_channels, 2 * (size.height // cell), 2 * (size.width // cell))


def refusing(reasons: Mapping[str, str], beside: Refusal) -> Refusal:
    """Refuse some keywords, a VAE that decodes with the picture's help, and what is refused beside."""

    def refusals(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
        for name, reason in reasons.items():
            if options.get(name) is not None:
                return reason
        if type(pipe.vae).__name__ == "AsymmetricAutoencoderKL":
            return "its AsymmetricAutoencoderKL decodes with the picture and the mask beside the latents"
        return beside(pipe, options, size)

    return refusals


def from_picture(
    family: Family,
    name: str,
    pipeline: str,
    *,
    pictures: tuple[str, ...] = ("image",),
    reasons: Mapping[str, str] | None = None,
    beside: Refusal | None = None,
    shared: Mapping[str, object] | None = None,
    **changes: object,
) -> Family:
    """The family of a pipeline that does with a picture what another does with text alone.

    Args:
        pictures: keywords of the call.
        reasons: why some of its keywords are refused.
        beside: what is refused beside; what the other refuses when None.
        shared, changes: further attributes of the family.
    """
    words = [] if family.refused == "nothing" or beside is not None else family.refused.split(", ")
    refused = ", ".join(dict.fromkeys([*words, *(reasons or {})])) or "nothing"
    return replace(
        family,
        **{
            "name": name,
            "pipeline": pipeline,
            "edits": True,
            "pictures": pictures,
            "prepared_again": True,
            "text_attention": False,
            "end_token": None,
            "refusals": refusing(reasons or {}, beside or family.refusals),
            "refused": refused,
            **(shared or {}),
            **changes,
        },  # type: ignore[arg-type]
    )
