"""Multi-scale structural similarity: whether two pictures have the same structure at the same places.

Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment", 2003, by torchmetrics, with
equal weights of three scales as NeMo uses it (arXiv 2406.02366). Needs no weights. It compares position by position: a
shifted or cropped copy scores low, two flat pictures score high, so it is a second opinion and never alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.copies.tiled import shrink

KERNEL = 11
CHUNK = 256  # pairs compared at once


def ms_ssim(images: Tensor, references: Tensor, *, scales: int = 3, data_range: float = 1.0) -> Tensor:
    """Similarity of the first to the first, the second to the second, ...

    Each scale halves the picture, and the window of 11 pixels must fit the last one: pictures under 44 pixels get
    fewer scales (22: two, 11: one). torchmetrics itself refuses 40 and less for three scales.

    Args:
        images: (n, C, H, W), finite; ``references`` likewise.
        scales: at most so many, equally weighted.
        data_range: distance of the largest possible value from the smallest.

    Returns:
        (n,) float32 in [0, 1]; higher = more alike, 1 = equal.

    Raises:
        InputError: the shapes differ, or a side is under 11 pixels.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as torchmetrics_ms_ssim

    side = min(images.shape[-2:])
    if images.shape != references.shape or side < KERNEL:
        raise InputError(
            f"MS-SSIM compares pictures of one size, at least {KERNEL} pixels a side; got "
            f"{tuple(images.shape)} and {tuple(references.shape)}."
        )
    fitting = max(n for n in range(1, scales + 1) if side >> (n - 1) >= KERNEL)
    parts = zip(images.float().split(CHUNK), references.float().split(CHUNK), strict=True)
    scores = [
        torchmetrics_ms_ssim(
            a, b, kernel_size=KERNEL, betas=(1 / fitting,) * fitting, data_range=data_range, reduction="none"
        ).reshape(-1)
        for a, b in parts
    ]
    return torch.cat(scores)


class MsSsim:
    """:func:`ms_ssim` of every pair as a copy detector.

    Args:
        threshold: similarity from which two pictures count as copies.
        side: of the square both pictures are shrunk to.
    """

    name = "ms-ssim"

    def __init__(self, threshold: float = 0.6, *, side: int = 64) -> None:
        self.threshold, self.side = threshold, side
        self.preprocessing = f"squash to {side}x{side}, antialiased bilinear; RGB in [0, 1]; equal weights of 3 scales"

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [0, 1]; higher = more alike."""
        own, others = shrink(images, self.side), shrink(references, self.side).to(images.device)
        rows = [ms_ssim(image.expand_as(others), others) for image in own]
        return torch.stack(rows)
