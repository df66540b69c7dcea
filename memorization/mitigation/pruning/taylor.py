"""Target-aware first-order pruning: what the memorized images need most and ordinary data least goes first.

The first-order Taylor importance of a weight for a data set, after Molchanov et al., "Importance Estimation for Neural
Network Pruning", 2019 (arXiv 1906.10771), is

    I(w) = |w| * sqrt(mean over batches b of g_b(w)^2),    g_b = the gradient of the mean diffusion loss of batch b,

the change of the loss to first order when w becomes 0, as root mean square over batches: a batch's loss is at its
minimum only on average, so that the plain mean of the gradients of a trained model vanishes. Here it is taken on the
memorized images under their captions, I_mem, and on retention data, I_ord, and the sign is turned: with the means m_mem
and m_ord over all weights that may be pruned,

    S(w) = (I_ord / m_ord + d) / (I_mem / m_mem + d),

and the smallest S go first. The damping d leaves weights that neither needs at S = 1; without it |w| would cancel and
unimportant weights would be ordered by noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memorization.mitigation.pruning.calibration import Calibration, NoisedRows
from memorization.mitigation.pruning.layers import Layer

__all__ = ["importance", "root_mean_square_gradients", "saliency"]


def root_mean_square_gradients(
    calibration: Calibration, layers: Mapping[str, Layer], rows: NoisedRows
) -> dict[str, Tensor]:
    """``sqrt(mean_b g_b^2)`` over the batches of the rows: layer -> float32, shaped as the weight; 0 where unused."""
    weights = [layer.weight for layer in layers.values()]
    squares = [torch.zeros_like(weight) for weight in weights]
    required = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        batches = rows.batches(calibration.batch)
        for which in batches:
            with torch.enable_grad():
                loss = calibration.losses(rows, which).mean()
                gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for total, gradient in zip(squares, gradients, strict=True):
                if gradient is not None:
                    total += gradient.square()
    finally:
        for weight, flag in zip(weights, required, strict=True):
            weight.requires_grad_(flag)
    return {name: (total / len(batches)).sqrt() for name, total in zip(layers, squares, strict=True)}


def importance(weight: Tensor, gradient: Tensor) -> Tensor:
    """``|w| * |g|``, >= 0, higher = matters more for the loss whose (root mean square) gradient is given."""
    return (weight.detach() * gradient).float().abs()


def saliency(ordinary: Tensor, memorized: Tensor, *, means: Sequence[float], damping: float) -> Tensor:
    """``(I_ord / m_ord + d) / (I_mem / m_mem + d)``, > 0, higher = keep.

    Args:
        ordinary: importances on ordinary data, shaped as the weight.
        memorized: the same on memorized images.
        means: of ordinary and of memorized importances over all weights that may be pruned, > 0.
        damping: d > 0.

    Example:
        >>> saliency(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 0.0]), means=(0.5, 1.0), damping=1.0).tolist()
        [0.3333333432674408, 3.0]
    """
    return (ordinary / means[0] + damping) / (memorized / means[1] + damping)
