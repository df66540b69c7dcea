"""Pictures that a call is given beside the prompt: what ControlNets follow, and image prompts of IP-Adapters.

One picture for all prompts goes to every call of the stock pipeline as it is. Where each prompt has its own, candidates
of different prompts are denoised apart. Image prompts are encoded once, before anything is denoised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.errors import InputError
from diffkit.families import Family, Pipeline, any_family_of, pipe_denoiser
from diffkit.segments import Denoising

__all__ = [
    "ControlImages",
    "IP_EMBEDS",
    "IP_IMAGE",
    "control_images",
    "image_prompts",
    "picture_batch",
    "with_image_prompts",
]

IP_IMAGE, IP_EMBEDS = "ip_adapter_image", "ip_adapter_image_embeds"


class ControlImages(NamedTuple):
    """One image for all prompts or one for each, a list of as many as there are ControlNets; and pixels."""

    images: list[object]
    size: tuple[int, int]


def control_images(
    pipe: Pipeline, family: Family, given: object, prompts: int, size: tuple[int | None, int | None]
) -> ControlImages:
    """What ControlNets follow, sorted by prompts.

    Args:
        given: as the stock pipeline takes it: a picture, a batch or a list; of several ControlNets a list with one of
            these for each, or a list for each prompt.
        size: height and width in pixels, where the call says them.

    Raises:
        InputError: no image, not one for each ControlNet and for all or each of the prompts, or of different sizes.
    """
    nets = len(pipe.controlnet.nets) if hasattr(pipe.controlnet, "nets") else 0
    if given is None:
        raise InputError(
            f"A ControlNet follows an image; give it as {family.control}=, one for all prompts or for each."
        )
    images = _for_several(family, given, nets, prompts) if nets else picture_batch(str(family.control), given, prompts)
    flat = [image for entry in images for image in (entry if isinstance(entry, list) else [entry])]
    sizes = {tuple(map(int, pipe.control_image_processor.get_default_height_width(image))) for image in flat}
    if len(sizes) > 1 and None in size:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise InputError(f"The images of {family.control}= have different sizes ({listed}); say height and width.")
    height, width = min(sizes)
    return ControlImages(images, (size[0] or height, size[1] or width))


def _for_several(family: Family, given: object, nets: int, prompts: int) -> list[object]:
    """Lists of one image for each of several ControlNets, one list for all prompts or one for each."""
    if not isinstance(given, list | tuple):
        raise InputError(f"There are {nets} ControlNets; give {family.control}= as a list with an image for each.")
    if any(isinstance(item, list | tuple) for item in given):
        whole = all(isinstance(item, list | tuple) and len(item) == nets for item in given)
        if not whole or len(given) not in (1, prompts):
            raise InputError(
                f"Expected {family.control}= as {prompts} lists (or one) of {nets} images, one for each ControlNet."
            )
        return [list(item) for item in given]
    if len(given) != nets:
        raise InputError(f"Got {len(given)} images in {family.control}= for {nets} ControlNets; give one for each.")
    columns = [picture_batch(str(family.control), item, prompts) for item in given]
    rows = max(len(column) for column in columns)
    return [[column[row if len(column) > 1 else 0] for column in columns] for row in range(rows)]


def picture_batch(name: str, given: object, prompts: int) -> list[object]:
    """One image for all prompts, or one for each; a batch stays one, of one row."""
    images: list[object]
    if isinstance(given, list | tuple):
        images = list(given)
    elif isinstance(given, Tensor | np.ndarray) and given.ndim == 4:
        images = [given[row : row + 1] for row in range(len(given))]
    elif isinstance(given, Tensor | np.ndarray):
        raise InputError(f"{name}= must have 4 dimensions, the first for images; got shape {given.shape}.")
    else:
        images = [given]
    if len(images) not in (1, prompts):
        raise InputError(f"Got {len(images)} images in {name}= for {prompts} prompts; give one, or one each.")
    return images


def image_prompts(pipe: Pipeline, extra: Mapping[str, object], prompts: int, *, guided: bool) -> list[list[Tensor]]:
    """Encoded image prompts, one tensor for each IP-Adapter: for all prompts, or for each; none without IP-Adapter.

    Args:
        extra: keyword arguments of the call.
        guided: whether rows for the negative prompt stand before the others, as in the stock pipeline.

    Returns:
        What the stock pipeline takes as ``ip_adapter_image_embeds`` for one prompt, once or for each prompt.

    Raises:
        InputError: no image prompt where there is an IP-Adapter, or the other way round, or not the right number.
    """
    if not any_family_of(pipe).image_prompts:
        return []
    image, embeds = extra.get(IP_IMAGE), extra.get(IP_EMBEDS)
    adapters = _adapters(pipe)
    if not adapters:
        if image is None and embeds is None:
            return []
        raise InputError("There is an image prompt and no IP-Adapter; load one by pipe.load_ip_adapter(...).")
    if (image is None) == (embeds is None):
        raise InputError(
            f"This pipeline has an IP-Adapter; give {IP_IMAGE}= or {IP_EMBEDS}=, one of both, or take it off by "
            f"pipe.unload_ip_adapter()."
        )
    if embeds is not None:
        return _given_embeds(embeds, adapters, prompts, guided)
    if pipe.image_encoder is None:
        raise InputError(f"This pipeline has no image_encoder; give {IP_EMBEDS}= instead of {IP_IMAGE}=.")
    return [
        list(pipe.prepare_ip_adapter_image_embeds(group, None, pipe._execution_device, 1, guided))
        for group in _groups(image, adapters, prompts)
    ]


def with_image_prompts(
    conditioning: Conditioning, denoising: Denoising, images: Sequence[list[Tensor]]
) -> tuple[Conditioning, Denoising]:
    """Hand encoded image prompts on, as :func:`image_prompts` returns them, in place of the images."""
    extra = {name: value for name, value in denoising.extra.items() if name not in (IP_IMAGE, IP_EMBEDS)}
    if len(images) == 1:
        return conditioning, replace(denoising, extra={**extra, IP_EMBEDS: images[0]})
    own = conditioning.own or [{} for _ in images]
    if images:
        own = [{**given, IP_EMBEDS: embeds} for given, embeds in zip(own, images, strict=True)]
    return replace(conditioning, own=own), replace(denoising, extra=extra)


def _adapters(pipe: Pipeline) -> int:
    """How many IP-Adapters are loaded."""
    projection = getattr(pipe_denoiser(pipe), "encoder_hid_proj", None)
    return len(getattr(projection, "image_projection_layers", ()))


def _groups(image: object, adapters: int, prompts: int) -> list[list[object]]:
    """Images for all adapters, for all prompts or for each; a list that the stock pipeline takes means the same."""
    listed = list(image) if isinstance(image, list) else [image]
    if len(listed) == adapters:
        return [listed]
    if adapters == 1 and len(listed) == prompts:
        return [[item] for item in listed]
    groups = [item for item in listed if isinstance(item, list) and len(item) == adapters]
    if len(listed) == len(groups) == prompts:
        return groups
    raise InputError(
        f"Got {len(listed)} image prompts for {adapters} IP-Adapters and {prompts} prompts; give one for each adapter, "
        f"or for each prompt a list of these."
    )


def _given_embeds(embeds: object, adapters: int, prompts: int, guided: bool) -> list[list[Tensor]]:
    if not isinstance(embeds, list) or len(embeds) != adapters or not all(map(torch.is_tensor, embeds)):
        raise InputError(f"{IP_EMBEDS} must be a list with one tensor for each of {adapters} IP-Adapters.")
    halves = 2 if guided else 1
    counts = {len(value) / halves for value in embeds}
    if not counts <= {1.0, float(prompts)} or any(value.ndim not in (3, 4) for value in embeds):
        shapes = ", ".join(str(tuple(value.shape)) for value in embeds)
        both = " [negative; positive]" if guided else ""
        raise InputError(
            f"{IP_EMBEDS} must have 3 or 4 dimensions, the first with {halves} rows{both} for all prompts or with "
            f"{halves} for each; got {shapes}."
        )
    rows = prompts if float(prompts) in counts and prompts > 1 else 1
    return [[_row(value, row, halves) for value in embeds] for row in range(rows)]


def _row(value: Tensor, row: int, halves: int) -> Tensor:
    """The rows of one prompt: [negative; positive], or positive alone."""
    parts = value.chunk(halves)
    return torch.cat([part[row if len(part) > 1 else 0][None] for part in parts])
