"""Clusters of near-duplicates among suspects, each of which counts once.

Lists of memorized captions repeat pictures (NeMo's published 500 are 304 after the authors' own de-duplication), which
makes n too large and intervals too narrow. The clusters are the connected components of pairs of reference pictures
whose similarity reaches a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.copies import CopyDetector

BLOCK = 64  # pictures compared with all others at once, which bounds the memory


def duplicate_threshold(threshold: float) -> float:
    """Similarity from which two references count as one picture: halfway from the copy threshold to 1.

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
        references: for each suspect (R, 3, H, W) in [0, 1], or None without a picture: its similarities are NaN
            and it stays alone.
    """
    pictured = [(index, stack.cpu()) for index, stack in enumerate(references) if stack is not None and len(stack)]
    unknown = torch.full((len(references), len(references)), float("nan"))
    if not pictured:
        return unknown
    owners = torch.tensor([index for index, stack in pictured for _ in stack])
    pictures = torch.cat([stack for _, stack in pictured])
    pairs = torch.cat([detector.similarity(block, pictures).cpu() for block in pictures.split(BLOCK)])
    pairs = torch.maximum(pairs, pairs.T)  # a detector need not be symmetric
    rows = owners[:, None].expand_as(pairs).flatten() * len(references) + owners.repeat(len(owners))
    lowest = unknown.flatten().nan_to_num(nan=-math.inf)
    highest = lowest.scatter_reduce(0, rows, pairs.float().flatten(), "amax")
    return highest.masked_fill(highest == -math.inf, math.nan).view_as(unknown)
