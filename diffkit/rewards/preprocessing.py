"""How published rewards bring an image to the size of their network: exactly, on PIL images, and with a gradient.

The PIL path is what the authors' code does: bicubic resampling of 8-bit pixels with antialiasing, rounded to 8 bits.
The tensor path resamples floats, with the same filter and antialiasing, and rounds nothing: pixels differ by up to
about 0.5/255 in smooth regions and by more where the filter overshoots (both clip to [0, 1]). Tests measure both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError

__all__ = ["CLIP_MEAN", "CLIP_STD", "Preprocessing", "normalised"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Fit = Literal["crop", "crop-floor", "pad"]


def normalised(images: Tensor) -> Tensor:
    """CLIP's colour normalisation of (B, 3, H, W) in [0, 1]; zero mean, unit deviation over its training images."""
    mean = images.new_tensor(CLIP_MEAN).view(3, 1, 1)
    return (images - mean) / images.new_tensor(CLIP_STD).view(3, 1, 1)


@dataclass(frozen=True)
class Preprocessing:
    """Resize and fit to a square.

    Attributes:
        side: height and width of the network's input.
        fit: ``crop``: the shorter edge becomes ``side``, the middle is cut out as torchvision rounds it (ImageReward,
            OpenAI's CLIP, open_clip); ``crop-floor``: the same as transformers' image processor rounds it (PickScore);
            ``pad``: the longer edge becomes ``side``, the rest is black (HPS).
    """

    side: int
    fit: Fit = "crop"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after resizing, before cropping or padding."""
        if self.fit == "pad":
            scale = self.side / max(height, width)
            return max(round(height * scale), 1), max(round(width * scale), 1)
        if height <= width:
            return self.side, int(self.side * width / height)
        return int(self.side * height / width), self.side

    def offset(self, length: int) -> int:
        """Where the crop begins along an edge of that length; negative: how much padding comes before."""
        if self.fit == "pad":
            return -((self.side - length) // 2)
        return (length - self.side) // 2 if self.fit == "crop-floor" else round((length - self.side) / 2)

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images as (B, 3, side, side) float32 in [0, 1], exactly as published.

        ``crop-floor`` converts to RGB before resizing, the others after it, as their authors do; it matters only for
        images that are not RGB.
        """
        return torch.stack([self._picture(image) for image in images])

    def _picture(self, image: Image.Image) -> Tensor:
        if not isinstance(image, Image.Image):
            raise InputError(f"Expected PIL images, got {type(image).__name__}; tensors go to score().")
        if self.fit == "crop-floor":
            image = image.convert("RGB")
        width, height = image.size
        height, width = self.resized(height, width)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = self.offset(width), self.offset(height)
        image = image.convert("RGB").crop((left, top, left + self.side, top + self.side))  # outside is black
        return torch.from_numpy(np.asarray(image, dtype=np.uint8).copy()).permute(2, 0, 1).float() / 255

    def tensors(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float in [0, 1] as (B, 3, side, side) in [0, 1], differentiable.

        Raises:
            InputError: another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise InputError(f"Expected images of shape (B, 3, H, W), got {tuple(images.shape)}.")
        height, width = self.resized(*images.shape[-2:])
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = self.offset(height), self.offset(width)
        if self.fit == "pad":
            bottom, right = self.side - height + top, self.side - width + left
            return F.pad(images, (-left, right, -top, bottom))
        return images[..., top : top + self.side, left : left + self.side]
