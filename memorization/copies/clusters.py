"""Near-duplicates among suspects share one vote, and a suspect's seeds become one median and one maximum.

Lists of memorized captions hold the same picture many times over (NeMo's published 500 are 304 after the authors' own
de-duplication), which makes every n and interval too good. So: similarity of the reference pictures, a threshold,
connected components, one vote a component.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.copies import CopyDetector

BLOCK = 64  # pictures compared with all others at once, which bounds the memory


class Replication(NamedTuple):
    """Similarity of one suspect's generations to its references.

    Attributes:
        median: over seeds, what the published replication rates use; higher = more alike.
        maximum: over seeds, what the published labels "verbatim" and "template" use.
    """

    median: float
    maximum: float


def replication(similarities: Sequence[float]) -> Replication | None:
    """Median and maximum over seeds; None without seeds, or when one of them is not a number."""
    if not similarities or not all(math.isfinite(value) for value in similarities):
        return None
    return Replication(median(similarities), max(similarities))


def duplicate_threshold(threshold: float) -> float:
    """From where two references count as one picture: halfway from the copy threshold to 1.

    Stricter than for generations, since a false merge hides a suspect: on the lab's 54 photographs two different dark
    templates with one sticker reach 0.84 by ``tiled`` and are copies at 0.75, but no duplicates at 0.875.
    """
    return (threshold + 1) / 2


def clusters(similarity: Tensor, threshold: float) -> list[int]:
    """Connected components of the graph that joins every pair at or above the threshold.

    Args:
        similarity: (n, n), higher = more alike; a pair counts when either direction passes, NaN never does.
        threshold: see :func:`duplicate_threshold`.

    Returns:
        n labels, 0, 1, ... in the order in which the components first occur.

    Raises:
        InputError: the matrix is not square.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise InputError(f"Expected a square matrix of similarities, got shape {tuple(similarity.shape)}.")
    passed = similarity >= threshold
    joined = passed | passed.T
    labels = [-1] * len(joined)
    count = 0
    for first in range(len(joined)):
        if labels[first] >= 0:
            continue
        waiting = [first]
        while waiting:
            node = waiting.pop()
            if labels[node] < 0:
                labels[node] = count
                waiting += [int(other) for other in joined[node].nonzero().flatten() if labels[int(other)] < 0]
        count += 1
    return labels


@torch.no_grad()
def reference_similarity(detector: CopyDetector, references: Sequence[Tensor | None]) -> Tensor:
    """(n, n) similarity of suspects by their reference pictures, the highest over all pairs of two suspects' pictures.

    Args:
        detector: the copy detector.
        references: for each suspect (R, 3, H, W) in [0, 1], or None where there is no picture: those are like nobody
            (NaN) and stay alone.
    """
    known = [(index, stack.cpu()) for index, stack in enumerate(references) if stack is not None and len(stack)]
    found = torch.full((len(references), len(references)), float("nan"))
    if not known:
        return found
    owners = torch.tensor([index for index, stack in known for _ in stack])
    pictures = torch.cat([stack for _, stack in known])
    likeness = torch.cat([detector.similarity(block, pictures).cpu() for block in pictures.split(BLOCK)])
    likeness = torch.maximum(likeness, likeness.T)  # a detector need not be symmetric
    rows = owners[:, None].expand_as(likeness).flatten() * len(references) + owners.repeat(len(owners))
    lowest = found.flatten().nan_to_num(nan=-math.inf)
    highest = lowest.scatter_reduce(0, rows, likeness.float().flatten(), "amax")
    return highest.masked_fill(highest == -math.inf, math.nan).view_as(found)


def one_vote(labels: Sequence[int], values: Sequence[float | None]) -> list[float | None]:
    """The strongest known value of each cluster, by label; None where no member has one.

    Raises:
        InputError: not as many labels as values.
    """
    if len(labels) != len(values):
        raise InputError(f"Expected one cluster label per value, got {len(labels)} and {len(values)}.")
    votes: list[float | None] = []
    for label in range(max(labels, default=-1) + 1):
        members = (v for own, v in zip(labels, values, strict=True) if own == label and v is not None)
        votes.append(max((v for v in members if math.isfinite(v)), default=None))
    return votes
