"""Groups of embeddings whose members are compared with each other: the triggers of one image, and the nulls.

All groups have the same number of members, and member k began at start k (where it has a start), so that groups differ
only in what their members have in common.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from memorization.locality import embeddings as space
from memorization.locality.activations import discrepancies
from memorization.locality.mask_overlap import agreements
from memorization.locality.settings import LocalitySettings
from memorization.locality.weight_selection import Selector
from memorization.text_embeddings import unaccompanied

if TYPE_CHECKING:
    from diffkit.families import Pipeline


class Group(NamedTuple):
    """(m, L, D) embeddings to compare, and their displacements from the starts, (m, L, D) or None."""

    embeddings: Tensor
    displacements: Tensor | None


def make_groups(
    same: Mapping[str, Tensor],
    controls: Mapping[str, Tensor],
    starts: Tensor,
    captions: Sequence[Tensor],
    ordinary: Sequence[Tensor],
    *,
    members: int,
) -> dict[str, Group]:
    """All groups by name: ``same:<key>``, ``control:<key>``, ``others``, ``starts``, ``captions``, ``ordinary``.

    Args:
        same: key -> (K, L, D) triggers of a memorized image; ``controls`` of a never-seen one.
        starts: (K, L, D).
        captions: (L, D) each, of the memorized images; ``ordinary`` of nothing memorized.
        members: of each group; a group that cannot have as many is left out.
    """
    m = members
    groups = {f"same:{key}": Group(triggers[:m], triggers[:m] - starts[:m]) for key, triggers in same.items()}
    groups |= {f"control:{key}": Group(triggers[:m], triggers[:m] - starts[:m]) for key, triggers in controls.items()}
    if len(same) >= m:
        mixed = torch.stack([triggers[k] for k, triggers in enumerate(list(same.values())[:m])])
        groups["others"] = Group(mixed, mixed - starts[:m])
    groups["starts"] = Group(starts[:m], None)
    for name, listed in (("captions", captions), ("ordinary", ordinary)):
        if len(listed) >= m:
            groups[name] = Group(torch.stack(list(listed[:m])), None)
    return {name: group for name, group in groups.items() if len(group.embeddings) >= 2}


def compare_members(
    pipe: Pipeline, group: Group, selectors: Mapping[str, Selector], settings: LocalitySettings
) -> dict[str, Any]:
    """All comparisons of the pairs of one group, as JSON values.

    Returns:
        ``distance`` and, with displacements, ``cosine``: (m, m) matrices; ``rank``; ``activations``: layer -> matrix;
        ``weights``: method -> layer -> {iou, chance: matrices, sizes}. A missing entry is None.
    """
    record: dict[str, Any] = {"members": len(group.embeddings), "distance": rows(space.pairwise_distance(group[0]))}
    if group.displacements is not None:
        rank = space.rank(group.displacements)
        record["cosine"] = rows(space.pairwise_cosine(group.displacements))
        record["rank"] = rank._asdict() if rank is not None else None
    whole = unaccompanied(pipe, group.embeddings)
    layers = discrepancies(
        pipe,
        whole,
        patterns=settings.patterns,
        noise_seeds=range(settings.noises),
        steps=settings.num_inference_steps,
    )
    record["activations"] = {layer: rows(matrix) for layer, matrix in layers.items()}
    record["weights"] = {
        method: {
            layer: {"iou": rows(pairs.iou), "chance": rows(pairs.chance), "sizes": pairs.sizes.tolist()}
            for layer, pairs in agreements(choose(whole)).items()
        }
        for method, choose in selectors.items()
    }
    return record


def rows(matrix: Tensor) -> list[list[float | None]]:
    """A matrix as JSON: six significant digits, NaN as None."""
    return [[float(f"{v:.6g}") if math.isfinite(v) else None for v in row] for row in matrix.tolist()]
