"""Edited controls: images made from the suspect itself, on which the model was not trained.

If an attack reproduces the mirror image, the shuffled patches or the spectrum of a suspect as easily as the suspect, it
reproduces any target and is no evidence of memorization. The reverse is weaker: the edits of a flat image are nearly
that image, and a crop of a memorized image is partly memorized. Edits are therefore reported beside the matched
controls and never counted among them. All are pure functions of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from memorization.items import EditName

if TYPE_CHECKING:
    from torch import Tensor

CROP = 0.6  # share of each side that a crop keeps
PATCHES = 4  # a side is cut into so many for the shuffle


def mirror(image: Tensor, generator: torch.Generator) -> Tensor:
    """(3, H, W) left to right. The copy detectors here do not see a mirrored copy."""
    return image.flip(-1)


def crop(image: Tensor, generator: torch.Generator) -> Tensor:
    """A corner of 60 % of each side, enlarged to the full size; which corner is drawn."""
    height, width = image.shape[-2:]
    h, w = round(CROP * height), round(CROP * width)
    corner = int(torch.randint(4, (), generator=generator))
    top, left = (height - h) * (corner // 2), (width - w) * (corner % 2)
    part = image[None, :, top : top + h, left : left + w]
    return F.interpolate(part, size=(height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def shuffle(image: Tensor, generator: torch.Generator) -> Tensor:
    """4 x 4 patches in another order, none in its old place: the same objects, moved. Sides must divide by 4."""
    height, width = image.shape[-2:]
    h, w = height // PATCHES, width // PATCHES
    patches = [
        image[:, h * row : h * (row + 1), w * column : w * (column + 1)]
        for row in range(PATCHES)
        for column in range(PATCHES)
    ]
    ring = torch.randperm(len(patches), generator=generator).tolist()  # one cycle through all: no patch stays
    moved = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    order = [patches[moved[place]] for place in range(len(patches))]
    rows = [torch.cat(order[PATCHES * row : PATCHES * (row + 1)], -1) for row in range(PATCHES)]
    return torch.cat(rows, -2)


def noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """A texture of the image's own power spectrum and mean colours with random phases: no object left.

    The same random phases turn all three colours, which keeps their correlation (Galerne et al., "Random Phase
    Textures", 2011). Clipped to [0, 1].
    """
    spectrum = torch.fft.rfft2(image)
    turn = torch.fft.rfft2(torch.randn(image.shape[-2:], generator=generator))
    turn = turn / turn.abs().clamp(min=1e-12)
    turn[0, 0] = 1  # the mean colour stays
    texture: Tensor = torch.fft.irfft2(spectrum * turn, s=image.shape[-2:])
    return texture.clamp(0, 1)


EDITS: dict[EditName, Callable[[Tensor, torch.Generator], Tensor]] = {
    "mirror": mirror,
    "crop": crop,
    "shuffle": shuffle,
    "noise": noise,
}


def edit(name: EditName, image: Tensor, seed: int) -> Tensor:
    """(3, H, W) in [0, 1] to the same shape and range, decided by the seed alone."""
    return EDITS[name](image, torch.Generator().manual_seed(seed))
