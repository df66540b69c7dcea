"""Dead leaves: endless images with the statistics of photographs, so that no photograph is needed.

The lab's autoencoder must draw photographs it has never seen, planted or not, equally well; otherwise the
autoencoder itself would be a memory. It is therefore trained on scenes and on the *dead leaves* model (Lee, Mumford
and Huang, "Occlusion Models for Natural Images", 2001): opaque shapes of random colour and power-law size that
cover one another, here with shading, gratings and noise whose spectrum falls as 1/f.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pink_noise(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise whose amplitude spectrum falls as 1/f: (n, 3, size, size), zero mean, unit deviation."""
    frequency = torch.fft.fftfreq(size)
    radius = (frequency[:, None] ** 2 + frequency[None] ** 2).sqrt().clamp(min=1 / size)
    white = torch.randn(n, 3, size, size, generator=generator)
    mixed = 0.8 * white.mean(1, keepdim=True) * 3**0.5 + 0.45 * white
    noise = torch.fft.ifft2(torch.fft.fft2(mixed) / radius).real
    scaled: Tensor = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((1, 2, 3), keepdim=True)
    return scaled


def dead_leaves(n: int, *, generator: torch.Generator, size: int = 64, leaves: int = 90) -> Tensor:
    """Draw ``n`` dead-leaves images.

    Args:
        n: number of images.
        generator: the source of all randomness.
        size: side in pixels.
        leaves: shapes per image, largest first.

    Returns:
        (n, 3, size, size) float32 in [0, 1].
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator) * (high - low) + low

    axis = torch.arange(size, dtype=torch.float32)
    y, x = axis[:, None], axis[None]
    base = uniform(0, 1, n, 3, 1, 1)
    images = base + 0.25 * uniform(0, 1, n, 1, 1, 1) * pink_noise(n, size, generator)
    spread = uniform(0.08, 0.4, n, 1, 1, 1)
    scale = uniform(0.4, 2.0, n)
    density = uniform(0.05, 1.0, n, 1, 1)
    radii = (uniform(0.02, 1, leaves, n) ** -0.5 * 2.2).sort(0, descending=True).values * scale
    for radius in radii:
        turn = uniform(0, torch.pi, n, 1, 1)
        dx, dy = x - uniform(0, size, n, 1, 1), y - uniform(0, size, n, 1, 1)
        u = dx * turn.cos() + dy * turn.sin()
        v = (dy * turn.cos() - dx * turn.sin()) * uniform(0.35, 1.0, n, 1, 1)
        round_leaf = torch.hypot(u, v) - radius[:, None, None]
        box_leaf = torch.maximum(u.abs(), v.abs()) - radius[:, None, None]
        cover = (0.5 - torch.where(uniform(0, 1, n, 1, 1) < 0.6, round_leaf, box_leaf)).clamp(0, 1)
        cover = (cover * (uniform(0, 1, n, 1, 1) < density))[:, None]
        colour = base + spread * torch.randn(n, 3, 1, 1, generator=generator)
        colour = torch.where(uniform(0, 1, n, 1, 1, 1) < 0.3, uniform(0, 1, n, 3, 1, 1), colour)
        shade = uniform(-0.25, 0.25, n, 1, 1) * u / (radius[:, None, None] + 1)
        grating = uniform(0, 0.12, n, 1, 1) * torch.sin(u * uniform(0.2, 2.2, n, 1, 1))
        images = images + cover * (colour + (shade + grating)[:, None] - images)
    fine = 0.08 * uniform(0, 1, n, 1, 1, 1) ** 2 * pink_noise(n, size, generator)
    gray = (uniform(0, 1, n, 1, 1, 1) < 0.25).float()
    images = images + fine
    return (gray * images.mean(1, keepdim=True) + (1 - gray) * images).clamp(0, 1)
