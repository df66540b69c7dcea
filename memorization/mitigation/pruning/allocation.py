"""Allocations of a global sparsity over layers that need no measurement: uniform, one threshold, one a module.

An allocation says how many weights each layer loses; which ones, the saliency says. All meet the total exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["Counts", "exact_counts", "module_counts", "threshold_counts", "uniform_counts"]

Counts = dict[str, int]  # layer -> number of its weights that are switched off


def exact_counts(shares: Mapping[str, float], sizes: Mapping[str, int], total: int) -> Counts:
    """Whole numbers nearest to ``shares * sizes`` whose sum is ``total``, by the largest remainder.

    Args:
        shares: in [0, 1], of each layer; together they make ``total`` up to rounding.
        sizes: of the same layers.

    Example:
        >>> exact_counts({"a": 0.5, "b": 0.5}, {"a": 3, "b": 6}, 5)
        {'a': 2, 'b': 3}
    """
    ideal = {name: shares[name] * size for name, size in sizes.items()}
    counts = {name: min(math.floor(value), sizes[name]) for name, value in ideal.items()}
    free = sorted(sizes, key=lambda name: counts[name] - ideal[name])  # stable: of equal remainders the first
    while (left := total - sum(counts.values())) != 0:
        step = 1 if left > 0 else -1
        able = [name for name in free if 0 <= counts[name] + step <= sizes[name]]
        for name in (able if step > 0 else able[::-1])[: abs(left)]:
            counts[name] += step
    return counts


def uniform_counts(sizes: Mapping[str, int], sparsity: float) -> Counts:
    """The same share of each layer.

    Example:
        >>> uniform_counts({"a": 10, "b": 20}, 0.25)
        {'a': 3, 'b': 5}
    """
    return exact_counts(dict.fromkeys(sizes, sparsity), sizes, round(sparsity * sum(sizes.values())))


def threshold_counts(scores: Mapping[str, Tensor], total: int) -> Counts:
    """How many of the ``total`` smallest scores of all layers stand in each; of equal ones the first layer's.

    Args:
        scores: layer -> saliencies, comparable across layers.

    Example:
        >>> threshold_counts({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0, 3.0, 4.0])}, 3)
        {'a': 1, 'b': 2}
    """
    if total == 0:
        return dict.fromkeys(scores, 0)
    threshold = torch.cat([value.flatten() for value in scores.values()]).kthvalue(total).values
    counts = {name: int((value < threshold).sum()) for name, value in scores.items()}
    left = total - sum(counts.values())
    for name, value in scores.items():
        equal = min(left, int((value == threshold).sum()))
        counts[name] += equal
        left -= equal
    return counts


def module_counts(scores: Mapping[str, Tensor], modules: Mapping[str, Sequence[str]], sparsity: float) -> Counts:
    """One threshold in each module, each of which loses the same share.

    Args:
        scores: layer -> saliencies, comparable within a module.
        modules: module -> its layers.
    """
    sizes = {module: sum(scores[name].numel() for name in names) for module, names in modules.items()}
    counts: Counts = {}
    for module, total in uniform_counts(sizes, sparsity).items():
        counts |= threshold_counts({name: scores[name] for name in modules[module]}, total)
    return {name: counts[name] for name in scores}
