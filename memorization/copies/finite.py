"""Similarity of images of which some may be broken: unknown is NaN, whatever a detector makes of a broken image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from diffkit.finite import finite_rows

if TYPE_CHECKING:
    from torch import Tensor

    from memorization.copies import CopyDetector

__all__ = ["finite_similarity"]


def finite_similarity(detector: CopyDetector, images: Tensor, references: Tensor) -> Tensor:
    """The detector's similarities, with NaN where an image is not finite.

    Such an image is not shown to the detector: one that works on 8-bit pictures would compare it as black.

    Args:
        images: (A, 3, H, W) in [0, 1], or not finite; ``references``: (B, 3, H', W') likewise.

    Returns:
        (A, B) float32 on the CPU, in [-1, 1]; higher = more alike.
    """
    rows, columns = finite_rows(images), finite_rows(references)
    if bool(rows.all()) and bool(columns.all()):
        return detector.similarity(images, references).cpu()
    table = torch.full((len(images), len(references)), torch.nan)
    if bool(rows.any()) and bool(columns.any()):
        at = torch.meshgrid(rows.cpu().nonzero().flatten(), columns.cpu().nonzero().flatten(), indexing="ij")
        table[at] = detector.similarity(images[rows], references[columns]).float().cpu()
    return table
