"""Structural similarity of latent-sized maps, small ones included."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffkit.errors import InputError

__all__ = ["Scales", "pairwise", "scales_for", "similarity", "unit_range"]

KERNEL, SIGMA, SCALES = 11, 1.5, 3  # as NeMo sets them: a Gaussian window of 11, three scales of equal weight
SMALLEST = 7  # a narrower window measures no structure; the number of scales is reduced first


class Scales(NamedTuple):
    """How MS-SSIM is taken: side of its window, and the number of scales."""

    kernel: int
    scales: int


def scales_for(side: int) -> Scales:
    """NeMo's settings where the window fits the smallest scale, else smaller ones.

    At 64x64 latents: 11, 3. Below 44 the window shrinks to the size of the smallest scale, but not below 7; below that
    there is one scale less (16x16: 7, 2). The mathematics needs ``side // 2 ** (scales - 1) >= kernel``.

    Args:
        side: of the shorter edge.

    Raises:
        InputError: less than 7.
    """
    for scales in range(SCALES, 0, -1):
        fits = side // 2 ** (scales - 1)
        if fits >= SMALLEST:
            return Scales(min(KERNEL, fits - (fits + 1) % 2), scales)
    raise InputError(f"Latents of {side} pixels are too small to compare their structure; at least {SMALLEST} needed.")


def unit_range(maps: Tensor) -> Tensor:
    """Each channel of each map stretched to [0, 1]: (n, C, h, w); a constant channel becomes 0."""
    maps = maps.float()
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    stretched: Tensor = (maps - low) / (high - low).clamp(min=1e-8)
    return stretched


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """MS-SSIM of each pair of maps, after :func:`unit_range`: (n, C, h, w) twice to (n,), at most 1 = the same."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as ms_ssim

    kernel, scales = scales_for(min(a.shape[-2:]))
    values: Tensor = ms_ssim(
        unit_range(a),
        unit_range(b),
        kernel_size=kernel,
        sigma=SIGMA * kernel / KERNEL,  # torchmetrics derives the window from sigma: 3.5 deviations to each side
        reduction="none",
        data_range=1.0,
        betas=(1 / scales,) * scales,
        normalize="relu",
    )
    return values.reshape(len(a))


def pairwise(maps: Tensor) -> Tensor:
    """MS-SSIM of every map with every other: (n, C, h, w) to (n, n), the diagonal NaN."""
    n = len(maps)
    rows, columns = torch.triu_indices(n, n, 1)
    table = maps.new_full((n, n), torch.nan, dtype=torch.float32)
    if n > 1:
        values = similarity(maps[rows], maps[columns])
        table[rows, columns] = values
        table[columns, rows] = values
    return table
