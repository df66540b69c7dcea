"""Which of many pictures are one picture and count once: candidates by thumbnails, then the copy detector on these.

Lists of memorized captions repeat pictures (NeMo's published 500 are 304 after the authors' own de-duplication), which
makes n too large and intervals too narrow. All pairs of n pictures are n^2 comparisons, hours for ten thousand.
A descriptor is a thumbnail of a few hundred numbers; products of blocks of descriptors leave few pairs, which alone the
detector compares. Pictures are read one after the other, so that memory grows with the descriptors only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, islice
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.console import Bar, progress
from memorization.copies import CopyDetector
from memorization.copies.tiled import shrink, zoomed

__all__ = ["candidate_pairs", "descriptors", "duplicate_threshold", "group_duplicates"]

SIDE = 12  # of a thumbnail
ZOOMS = (1.0, 1.08, 1.16, 1.25)  # as the tiled detector: either picture may be a crop of the other
CANDIDATE = 0.6  # correlation of two thumbnails from which the detector compares their pictures
FLAT = 0.05  # norm of a thumbnail that shows nothing
BLOCK = 1024  # descriptors multiplied at once
COMPARED = 16  # pairs of one item that the detector compares at once
#: The detector's two directions differ little: of 502 copies of the lab's photographs that reach the threshold in one
#: direction, none is more than 0.025 below it in the other (``tiled``; ``ms-ssim`` is symmetric).
MARGIN = 0.1
KEPT = 64  # pictures kept in memory for the next comparison

#: Reads the pictures of one item: (R, 3, H, W) in [0, 1], or None without one.
Reader = Callable[[int], Tensor | None]


def duplicate_threshold(threshold: float) -> float:
    """Similarity from which two references count as one picture: halfway from the copy threshold to 1.

    Stricter than for generations, since a false merge hides a suspect: on the lab's 54 photographs two different dark
    templates with one sticker reach 0.84 by ``tiled`` and are copies at 0.75, but no duplicates at 0.875.
    """
    return (threshold + 1) / 2


def descriptors(pictures: Tensor) -> Tensor:
    """Thumbnails as unit vectors: (R, 3, H, W) in [0, 1] to (R, 4, 3 * 12 * 12 + 1), one for each zoom, float32.

    Each channel has mean zero, so that the product of two is the correlation of the thumbnails. The last number is 1
    for flat pictures, which have no other: they are candidates for each other alone.
    """
    views = zoomed(shrink(pictures, SIDE * 2), ZOOMS)  # (R, Z, 3, S, S)
    small = F.avg_pool2d(views.flatten(0, 1), 2)
    centred = (small - small.mean((-2, -1), keepdim=True)).flatten(1)
    flat = (centred.norm(dim=1, keepdim=True) < FLAT).float()
    units = torch.cat([F.normalize(centred, dim=1) * (1 - flat), flat], 1)
    return units.view(len(pictures), len(ZOOMS), -1)


def candidate_pairs(described: Tensor, least: float = CANDIDATE, bar: Bar | None = None) -> Iterator[tuple[int, int]]:
    """Pairs (i, j) with i < j of descriptors (n, Z, D) that correlate at least so much at some zoom of either.

    Args:
        described: of all pictures.
        least: correlation.
        bar: progress; counts every pair that was looked at.
    """
    plain = described[:, 0]
    for first in range(0, len(plain), BLOCK):
        block = described[first : first + BLOCK]
        for second in range(first, len(plain), BLOCK):
            others = described[second : second + BLOCK]
            views = torch.einsum("azd,bd->zab", block, plain[second : second + BLOCK]).amax(0)
            crops = torch.einsum("ad,bzd->zab", plain[first : first + BLOCK], others).amax(0)
            for i, j in (torch.maximum(views, crops) >= least).nonzero().tolist():
                if first + i < second + j:
                    yield first + i, second + j
            if bar is not None:
                bar.advance(len(block) * len(others) if second > first else len(block) * (len(block) - 1) // 2)


@torch.no_grad()
def different_pictures(pictures: Tensor, detector: CopyDetector) -> list[int]:
    """Rows of pictures (n, 3, H, W) of which no two are near-duplicates: the first of each group.

    Of these alone pairs are no copies of one another, from which a threshold can be calibrated.
    """
    limit = duplicate_threshold(detector.threshold)
    labels = group_duplicates(len(pictures), lambda row: pictures[row : row + 1], detector, limit)
    return [labels.index(label) for label in sorted(set(labels))]


def group_duplicates(n: int, read: Reader, detector: CopyDetector, threshold: float) -> list[int]:
    """Label each of n items by its group of near-duplicates, with progress on the console.

    Two items are one picture when any pair of their pictures reaches the threshold in either direction; groups are the
    connected components. Pairs within a group that is already joined are not compared.

    Args:
        n: items.
        read: the pictures of item i, of one size; called again for the pairs that are compared.
        detector: the copy detector; one with a method ``describe``, whose products are its similarities, needs no
            thumbnails.
        threshold: see :func:`duplicate_threshold`.

    Returns:
        n labels, 0, 1, ... in the order in which the groups first occur; an item without a picture stays alone.
    """
    describe = getattr(detector, "describe", None)
    owners, described = _described(n, read, descriptors if describe is None else lambda x: describe(x)[:, None])
    groups = _Groups(n)
    cached = lru_cache(KEPT)(read)
    with progress("looking for near-duplicates", total=len(owners) * (len(owners) - 1) // 2) as bar:
        pairs = candidate_pairs(described, CANDIDATE if describe is None else threshold, bar)
        for i, others in _by_first((owners[first], owners[second]) for first, second in pairs):
            apart = [j for j in others if groups.root(i) != groups.root(j)]
            alike = [True] * len(apart) if describe is not None else _alike(cached, i, apart, detector, threshold)
            for j, same in zip(apart, alike, strict=True):
                if same:
                    groups.join(i, j)
    return groups.labels()


def _described(n: int, read: Reader, describe: Callable[[Tensor], Tensor]) -> tuple[list[int], Tensor]:
    """The item of each picture, and the pictures' descriptors (pictures, Z, D)."""
    owners, described = list[int](), [torch.zeros(0, 1, 1)]
    with progress("reading pictures", total=n) as bar:
        for item in range(n):
            pictures = read(item)
            if pictures is not None and len(pictures):
                described.append(describe(pictures).float().cpu())
                owners += [item] * len(pictures)
            bar.advance()
    return owners, torch.cat(described[1:] or described)


def _by_first(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Successive pairs with one first item: the item and its partners, each once, at most so many as compared at once.

    Example:
        >>> list(_by_first([(0, 1), (0, 1), (0, 2), (1, 2)]))
        [(0, [1, 2]), (1, [2])]
    """
    for first, group in groupby(pairs, key=itemgetter(0)):
        while others := list(dict.fromkeys(second for _, second in islice(group, COMPARED))):
            yield first, others


def _alike(read: Reader, item: int, others: Sequence[int], detector: CopyDetector, threshold: float) -> list[bool]:
    """Which of the others show a picture of the item.

    The others against the item first: one reference is cheap. In the other direction only those within ``MARGIN``.
    """
    pictures = read(item)
    if pictures is None or not others:
        return [False] * len(others)
    stacks = [pictures[:0] if stack is None else stack for stack in map(read, others)]
    scores = detector.similarity(torch.cat(stacks), pictures).split([len(stack) for stack in stacks])
    highest = [float(score.max()) if len(score) else -1.0 for score in scores]
    return [
        score >= threshold
        or (score >= threshold - MARGIN and bool((detector.similarity(pictures, stack) >= threshold).any()))
        for score, stack in zip(highest, stacks, strict=True)
    ]


class _Groups:
    """Items joined in pairs (union-find)."""

    def __init__(self, n: int) -> None:
        self.parents = list(range(n))

    def root(self, item: int) -> int:
        while self.parents[item] != item:
            self.parents[item] = item = self.parents[self.parents[item]]
        return item

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.root(i), self.root(j)))
        self.parents[high] = low

    def labels(self) -> list[int]:
        numbers: dict[int, int] = {}
        return [numbers.setdefault(self.root(item), len(numbers)) for item in range(len(self.parents))]
