"""ECoFLaP: layers that the loss is sensitive to lose less; sensitivities from forward passes alone.

Sung, Yoon and Bansal, "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models", ICLR 2024
(arXiv 2310.02998). The norm of a layer's gradient is estimated to zeroth order (:func:`squared_gradient_norm`); the
share of a layer's weights that is kept is proportional to its sensitivity, within a band around the global one
(:func:`ecoflap_counts`); which weights go, a saliency decides layer by layer.

Where we differ from the authors: central differences of one layer at a time (theirs perturb by one step of 1e-3
whatever the scale of the weights; ours is relative to it); and the sensitivity of a layer is the change of the loss to
first order when one of its weights becomes 0, ``rms(W) * ||g|| / sqrt(n)``, so that layers of different sizes and
scales can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from memorization.mitigation.pruning.allocation import Counts, exact_counts

__all__ = ["ecoflap_counts", "sensitivity", "squared_gradient_norm"]


@torch.no_grad()
def squared_gradient_norm(
    loss: Callable[[], float], weight: Tensor, *, epsilon: float, perturbations: int, source: torch.Generator
) -> float:
    """Mean over z ~ N(0, I) of ``((loss(W + e z) - loss(W - e z)) / 2e)^2``, whose expectation is ``||g||^2``.

    Args:
        loss: of the model as it is; called twice for each perturbation.
        weight: of one layer, changed in place meanwhile, and its own bits at the end.
        epsilon: e, > 0.
        perturbations: number of z.
        source: a generator on the CPU.
    """
    original, squares = weight.detach().clone(), 0.0
    try:
        for _ in range(perturbations):
            step = epsilon * torch.randn(weight.shape, generator=source).to(weight)
            weight.copy_(original + step)
            above = loss()
            weight.copy_(original - step)
            squares += ((above - loss()) / (2 * epsilon)) ** 2
    finally:
        weight.copy_(original)
    return squares / perturbations


def sensitivity(weight: Tensor, squared_norm: float) -> float:
    """``rms(W) * sqrt(squared_norm / n)``, >= 0, higher = prune less."""
    root_mean_square = float(weight.detach().float().square().mean().sqrt())
    return root_mean_square * math.sqrt(squared_norm / weight.numel())


def ecoflap_counts(
    sensitivities: Mapping[str, float], sizes: Mapping[str, int], *, sparsity: float, band: float
) -> Counts:
    """Weights to switch off in each layer: the kept share is ``c * sensitivity`` within the band.

    c is such that the total is exact.

    Args:
        sensitivities: >= 0, of each layer.
        sizes: of the same layers.
        sparsity: of all layers together.
        band: every layer's share lies in [sparsity - band, sparsity + band], cut off at 0 and 1.

    Example:
        >>> ecoflap_counts({"a": 1.0, "b": 1.5}, {"a": 100, "b": 100}, sparsity=0.5, band=0.2)
        {'a': 60, 'b': 40}
    """
    fewest, most = max(0.0, 1 - sparsity - band), min(1.0, 1 - sparsity + band)
    names = list(sizes)
    number = torch.tensor([sizes[name] for name in names], dtype=torch.float64)
    values = torch.tensor([sensitivities[name] for name in names], dtype=torch.float64)
    values = (values / values.max()).clamp(min=1e-12) if values.any() else torch.ones_like(values)

    def kept(exponent: float) -> Tensor:
        shares: Tensor = (values * 10.0**exponent).clamp(fewest, most)
        return shares

    low, high = -1.0 - 12.0, 13.0  # everything at the lower end, everything at the upper end
    for _ in range(100):
        middle = (low + high) / 2
        too_many = float((kept(middle) * number).sum()) > (1 - sparsity) * float(number.sum())
        low, high = (low, middle) if too_many else (middle, high)
    shares = dict(zip(names, (1 - kept(high)).tolist(), strict=True))
    return exact_counts(shares, sizes, round(sparsity * sum(sizes.values())))
