"""Structured pruning: whole heads, feed-forward channels and resnet groups, which can then be taken out of the model.

What is coupled is judged and pruned together, as in Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023
(arXiv 2301.12900), for diffusion models in "Structural Pruning for Diffusion Models", NeurIPS 2023 (arXiv 2305.10924).
The importance of a unit (:mod:`diffkit.mitigation.units`) is the mean of a saliency over its weights, so that any
saliency of this package serves. Where we differ from the authors: only inner widths shrink, not those that residual
connections tie together; and nothing is trained afterwards, since a mask is all that is kept.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.mitigation.packed_mask import mask_tensor
from diffkit.mitigation.units import Units, removable_units
from memorization.mitigation.pruning.layers import Layer, Layers, prunable_layers, smallest

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["allocate_units", "importances", "mask_of_units", "nearest_units", "prunable_units", "unit_weights"]


def prunable_units(pipe: Pipeline, patterns: Sequence[str] | None = None) -> tuple[dict[str, Units], Layers]:
    """Units of the denoiser's blocks, and the layers that they are made of; both named from the pipeline.

    Args:
        pipe: a pipeline of a known family.
        patterns: shell-style, of units: module and kind, e.g. ``unet.*attn2.head``, ``*.channel``; None = all.

    Raises:
        InputError: a pattern matches none, or the denoiser has no units.
    """
    part, layers = family_of(pipe).denoiser, prunable_layers(pipe)
    every: dict[str, Units] = {}
    for name, of in removable_units(getattr(pipe, part)).items():
        rows, columns = (
            {f"{part}.{layer}": index for layer, index in side.items() if f"{part}.{layer}" in layers}
            for side in (of.rows, of.columns)
        )
        if columns:
            every[f"{part}.{name}"] = replace(of, rows=rows, columns=columns)
    chosen = set(every) if patterns is None else set()
    for pattern in patterns or ():
        names = fnmatch.filter(every, pattern)
        if not names:
            raise InputError(f"No head, channel or group matches {pattern!r}, e.g. {part}.*.ff.channel.")
        chosen.update(names)
    if not chosen:
        raise InputError(f"{type(pipe).__name__} has no heads or channels that can be removed; prune weights.")
    units = {name: of for name, of in every.items() if name in chosen}
    used = {layer for of in units.values() for layer in (*of.rows, *of.columns)}
    return units, {name: layer for name, layer in layers.items() if name in used}


def unit_weights(units: Units, layers: Mapping[str, Layer]) -> int:
    """Weights of one unit."""
    rows = sum(index.shape[1] * layers[name].weight[0].numel() for name, index in units.rows.items())
    return rows + sum(index.shape[1] * layers[name].weight[:, 0].numel() for name, index in units.columns.items())


def importances(units: Units, scores: Mapping[str, Tensor]) -> Tensor:
    """Mean saliency over the weights of each unit: float32 (n,), on the CPU; higher = keep.

    Args:
        units: n of them.
        scores: layer -> saliencies, shaped as the weight (out, in, ...).

    Example:
        >>> index = torch.tensor([[0], [1]])
        >>> units = Units("channel", 2, {"before": index}, {"behind": index})
        >>> importances(units, {"before": torch.tensor([[1.0, 2.0], [5.0, 5.0]]), "behind": torch.tensor([[3.0, 8.0]])})
        tensor([2., 6.])
    """
    total, weights = torch.zeros(units.number, dtype=torch.float64), 0
    sides = [(scores[name].flatten(1), index) for name, index in units.rows.items()]
    sides += [(scores[name].transpose(0, 1).flatten(1), index) for name, index in units.columns.items()]
    for lines, index in sides:
        total += lines.double().sum(1).cpu()[index].sum(1)
        weights += index.shape[1] * lines.shape[1]
    return (total / weights).float()


def nearest_units(scores: Mapping[str, Tensor], weights: Mapping[str, int], total: int) -> dict[str, int]:
    """How many of the least important units each module loses, so that about ``total`` weights are off.

    Units go in rising order of importance until the number of weights is nearest to the total. The last unit of a
    module stays.

    Args:
        scores: units -> (n,) importances, comparable across modules.
        weights: of one unit of each.

    Example:
        >>> nearest_units({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0, 3.0, 9.0])}, {"a": 10, "b": 4}, 17)
        {'a': 1, 'b': 2}
    """
    places = [(float(value), name) for name, of in scores.items() for value in of.sort(stable=True).values[:-1]]
    places.sort(key=lambda place: place[0])
    counts, off = dict.fromkeys(scores, 0), 0
    for _, name in places:
        if abs(off + weights[name] - total) >= abs(off - total):
            break
        counts[name] += 1
        off += weights[name]
    return counts


def allocate_units(
    scores: Mapping[str, Tensor], weights: Mapping[str, int], sparsity: float, allocation: str
) -> dict[str, int]:
    """Units that each module loses; one of each stays.

    Args:
        scores: units -> (n,) importances.
        weights: of one unit of each.
        sparsity: share of the weights of all units.
        allocation: ``uniform``, the nearest whole number to the share of each, of 64 units or more the nearest multiple
            of 8, since matrix units of GPUs want multiples of 8; ``global``, :func:`nearest_units`; ``module``, the
            same within each module.

    Example:
        >>> scores = {"ff.channel": torch.arange(10.0), "attn.head": torch.arange(2.0)}
        >>> allocate_units(scores, {"ff.channel": 3, "attn.head": 20}, 0.3, "uniform")
        {'ff.channel': 3, 'attn.head': 1}
    """
    if allocation == "uniform":
        steps = {name: 8 if len(of) >= 64 else 1 for name, of in scores.items()}
        return {
            name: min(steps[name] * round(sparsity * len(of) / steps[name]), len(of) - 1) for name, of in scores.items()
        }
    modules = {name: name.rpartition(".")[0] if allocation == "module" else "" for name in scores}
    counts: dict[str, int] = {}
    for module in dict.fromkeys(modules.values()):
        part = {name: of for name, of in scores.items() if modules[name] == module}
        total = round(sparsity * sum(weights[name] * len(of) for name, of in part.items()))
        counts |= nearest_units(part, weights, total)
    return {name: counts[name] for name in scores}


def mask_of_units(
    units: Mapping[str, Units], layers: Mapping[str, Layer], scores: Mapping[str, Tensor], counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """The tensors of a mask of the ``counts`` least important units: whole rows, and the columns that read them."""
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    for name, of in units.items():
        off = smallest(scores[name], counts[name])
        for layer, index in of.rows.items():
            mark = rows.setdefault(layer, torch.zeros(len(layers[layer].weight), dtype=torch.bool))
            mark[index[off].flatten()] = True
        for layer, index in of.columns.items():
            mask = columns.setdefault(layer, torch.zeros(layers[layer].weight.shape, dtype=torch.bool))
            mask[:, index[off].flatten()] = True
    tensors = {f"{layer}.rows": mark.nonzero().flatten().int() for layer, mark in rows.items() if mark.any()}
    for layer, mask in columns.items():
        tensors |= mask_tensor(layer, mask)
    return tensors
