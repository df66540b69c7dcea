"""Pictures that are shown: what the safety checker flags is black in every one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from diffkit.families import Pipeline, any_family_of
from diffkit.finite import finite_rows
from diffkit.image_filters import flagged_images
from ttsnap.search.trace import StageTrace

__all__ = ["blacken", "flagged_rows", "pictures"]


def flagged_rows(pipe: Pipeline, images: Tensor, dtype: torch.dtype) -> list[bool]:
    """Which of (B, 3, H, W) finished images the safety checker flags; one that is not finite is not shown to it."""
    verdicts = [False] * len(images)
    whole = finite_rows(images).nonzero().flatten().tolist()
    for row, verdict in zip(whole, flagged_images(pipe, images[whole], dtype), strict=True):
        verdicts[row] = verdict
    return verdicts


def pictures(pipe: Pipeline, images: Tensor, flagged: Sequence[bool]) -> list[Image.Image]:
    """Images (B, 3, H, W) in [0, 1] as pictures, black where flagged or not finite; of videos the middle frame."""
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
    hidden = ~finite_rows(images) | torch.tensor(flagged, device=images.device)
    shown = images.masked_fill(hidden.view(-1, 1, 1, 1), 0.0)
    processor = pipe.video_processor if any_family_of(pipe).makes_videos else pipe.image_processor
    converted: list[Image.Image] = processor.numpy_to_pil(processor.pt_to_numpy(shown))
    return converted


def blacken(trace: Sequence[StageTrace], prompt: int, candidates: Sequence[int]) -> None:
    """Make the previews of a prompt's candidates black in earlier looks."""
    for look in trace:
        for position, picture in enumerate(look.previews):
            if look.prompt == prompt and look.candidates[position] in candidates:
                look.previews[position] = Image.new("RGB", picture.size)
