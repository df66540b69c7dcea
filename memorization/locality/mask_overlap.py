"""Overlap of the weights that two triggers select: intersection over union, and its expectation by chance.

"Finding Dori" reports the pairwise intersection over union of the weights that NeMo or Wanda would prune, and counts
two empty selections as full agreement (1), which raises the mean of every layer in which nothing is selected. Here
two empty selections are *missing*: they hold no information about locality.

By chance two random thirds of a layer overlap by a fifth; see :func:`chance_iou`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import InputError

Selection = Mapping[str, Tensor]  # layer -> bool mask of what a method would prune


class Agreement(NamedTuple):
    """Pairs of selections in one layer; entries are NaN where missing.

    Attributes:
        iou: (n, n) float64 in [0, 1]; 1 = the same set, NaN = both empty.
        chance: (n, n) float64: the expectation for random sets of the same two sizes in the same layer.
        sizes: (n,) selected weights.
    """

    iou: Tensor
    chance: Tensor
    sizes: Tensor


def iou(first: Tensor, second: Tensor) -> float | None:
    """Intersection over union of two masks of equal shape, in [0, 1]; None where both are empty.

    Raises:
        InputError: the shapes differ, or a mask is not of booleans.
    """
    if first.shape != second.shape or first.dtype != torch.bool or second.dtype != torch.bool:
        raise InputError(
            f"Expected two boolean masks of one shape, got {first.dtype} {tuple(first.shape)} "
            f"and {second.dtype} {tuple(second.shape)}."
        )
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else None


@lru_cache(maxsize=65536)
def chance_iou(total: int, first: int, second: int) -> float | None:
    """Expected intersection over union of two independent uniform subsets of sizes ``first`` and ``second``.

    The intersection k is hypergeometric, so the expectation is the sum over k of P(k) * k / (first + second - k).

    Args:
        total: weights in the layer.
        first: size of one set; ``second`` of the other.

    Returns:
        In [0, 1]; None where both are empty.

    Raises:
        InputError: a size is negative or larger than the layer.
    """
    from scipy.stats import hypergeom

    if not (0 <= first <= total and 0 <= second <= total):
        raise InputError(f"Expected set sizes between 0 and {total}, got {first} and {second}.")
    if first + second == 0:
        return None
    middle, spread = first * second / total, np.sqrt(first * second) / np.sqrt(total) + 1
    low = max(0, first + second - total, int(middle - 12 * spread))  # beyond 12 deviations the terms are negligible
    high = min(first, second, int(middle + 12 * spread))
    common = np.arange(low, high + 1)
    weights = hypergeom(total, first, second).pmf(common)
    return float((weights * common / (first + second - common)).sum())


def agreements(selections: Sequence[Selection]) -> dict[str, Agreement]:
    """All pairs of selections, layer by layer.

    Raises:
        InputError: the selections do not cover the same layers.
    """
    if not selections:
        return {}
    layers = list(selections[0])
    if any(set(selection) != set(layers) for selection in selections):
        raise InputError("Expected selections of the same layers; select all of them with one method and one pattern.")
    return {layer: _agreement([selection[layer] for selection in selections]) for layer in layers}


def _agreement(masks: Sequence[Tensor]) -> Agreement:
    n, total = len(masks), masks[0].numel()
    sizes = [int(mask.sum()) for mask in masks]
    overlap, expected = torch.full((n, n), torch.nan, dtype=torch.float64), torch.full((n, n), torch.nan).double()
    for i in range(n):
        for j in range(n):
            value = iou(masks[i], masks[j]) if i <= j else float(overlap[j, i])
            if value is not None:
                overlap[i, j] = value
                expected[i, j] = chance_iou(total, sizes[i], sizes[j]) or 0.0
    return Agreement(overlap, expected, torch.tensor(sizes))
