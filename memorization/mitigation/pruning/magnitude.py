"""Magnitude pruning: a weight matters as much as its absolute value.

Han et al., "Learning both Weights and Connections for Efficient Neural Networks", 2015 (arXiv 1506.02626).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["saliency"]


def saliency(weight: Tensor) -> Tensor:
    """``|W|``, float32, shaped as the weight (out, in, ...); >= 0, higher = keep.

    Example:
        >>> import torch
        >>> saliency(torch.tensor([[1.0, -2.0]])).tolist()
        [[1.0, 2.0]]
    """
    return weight.detach().float().abs()
