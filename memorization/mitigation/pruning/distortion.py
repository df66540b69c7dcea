"""DIMAP: a weight matters as much as its removal distorts what is left of its module; from weights alone.

He and Zhou, "Data-independent Module-aware Pruning for Hierarchical Vision Transformers", ICLR 2024 (arXiv 2404.13648).
Removing weights in rising order of magnitude, the importance of a weight is the distortion of its removal relative to
the weights of its *module* that are still there,

    I(w) = w^2 / sum of v^2 over the weights v of the module with |v| >= |w|.

Within a module the order is that of the magnitude, over all its layers; across modules the scores compare shares and
not sizes, so that a module of small weights is not removed for their scale. Modules here: a block's attention, a
block's feed-forward, a resnet (:func:`.layers.by_module`). The authors' modules are those
of Swin Transformers (queries, keys and values; output projections; MLPs; the rest). Under the allocation ``global`` one
threshold holds for all modules, as published; under ``module`` each loses the same share.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["saliency"]


def saliency(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importances of all weights of one module.

    Args:
        weights: layer -> (out, in, ...), all layers of the module.

    Returns:
        Layer -> float32 in [0, 1], shaped as the weight; higher = keep. The largest weight has 1. Of equal weights the
        one that comes first is removed first.

    Example:
        >>> scores = saliency({"q": torch.tensor([[1.0, 2.0]]), "k": torch.tensor([[2.0, -4.0]])})
        >>> scores["q"].tolist()  # 1 / 25, 4 / 24
        [[0.03999999910593033, 0.1666666716337204]]
    """
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()]).double().square()
    order = flat.argsort(stable=True)
    energy = flat[order].flip(0).cumsum(0).flip(0)
    scores = torch.empty_like(flat)
    scores[order] = flat[order] / energy.clamp(min=torch.finfo(torch.float64).tiny)
    parts = scores.float().split([weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
