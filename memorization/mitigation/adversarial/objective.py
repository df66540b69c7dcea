"""The objective of adversarial fine-tuning: redirected noise, and the learning-rate schedule."""

from __future__ import annotations

import torch
from torch import Tensor


def redirected(begin: Tensor, end: Tensor, noise: Tensor, ratio: Tensor) -> Tensor:
    """The noise with which ``end`` has the same noisy latents as ``begin``.

    With s the ratio of signal to noise, ``s^2 = abar / (1 - abar)`` or ``s = (1 - sigma) / sigma`` of a flow model:
    ``sqrt(abar) end + sqrt(1 - abar) noise'`` equals ``sqrt(abar) begin + sqrt(1 - abar) noise`` for
    ``noise' = noise + s (begin - end)``, and likewise under flow matching. Training on (end, noise') by the model's
    own law teaches it to predict ``end`` from noisy latents of ``begin``; for ``begin = end`` it is the plain
    diffusion loss. The shift grows with s: keep the signal-to-noise ratio s^2 bounded.

    Args:
        begin: (B, ...) latents whose noisy version is the input.
        end: (B, ...) latents to predict.
        noise: (B, ...) standard normal.
        ratio: (B,) s, > 0.
    """
    return noise + ratio.view(-1, *[1] * (noise.ndim - 1)) * (begin - end)


def rate_factor(update: int, updates: int, *, warmup: int = 20, floor: float = 0.1) -> float:
    """Learning-rate factor in (0, 1]: linear warm-up, then half a cosine down to ``floor``."""
    if update < warmup:
        return (update + 1) / warmup
    along = torch.tensor((update - warmup) / max(1, updates - warmup)).double()
    return floor + (1 - floor) * float((1 + (along * torch.pi).cos()) / 2)
