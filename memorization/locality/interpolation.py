"""Points on the straight lines between triggers: do they still give the image?

If the image filled one connected, convex region of embedding space, every point between two of its triggers would give
it. A point half-way to *anything* keeps half of the trigger, so each kind of line has its own null:

- ``trigger``: to another trigger of the same image;
- ``caption``: to the embedding of the image's own caption;
- ``start``: to another Gaussian start, which holds nothing of the image (the null: half a trigger alone);
- ``carried``: not a line but a transplant: the displacement of one trigger added to another start;
- ``mean``: the mean displacement of all successful triggers added to a start that none of them began at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from memorization.locality.embeddings import between

Kind = Literal["trigger", "caption", "start", "carried", "mean"]


class Point(NamedTuple):
    """One embedding to generate from.

    Attributes:
        kind: see the module.
        origin: index of the trigger it comes from; ``end`` of the start or trigger it leads to, None for the caption.
        share: of the way from the trigger, in (0, 1); 1 for a transplant.
        embedding: (L, D).
    """

    kind: Kind
    origin: int | None
    end: int | None
    share: float
    embedding: Tensor


def points(
    triggers: Tensor,
    starts: Tensor,
    caption: Tensor,
    successful: Sequence[int],
    *,
    lines: int,
    shares: tuple[float, ...],
    fresh: Tensor,
) -> list[Point]:
    """The points to generate from for one image; none with fewer than two successful triggers.

    Args:
        triggers: (K, L, D); ``starts`` the same shape, each trigger's own start.
        caption: (L, D).
        successful: indices of triggers that give the image.
        lines: pairs of each kind.
        shares: points on each line.
        fresh: (F, L, D) starts that no trigger began at, for ``mean``.
    """
    if len(successful) < 2:
        return []
    turn = [(a, successful[(i + 1) % len(successful)]) for i, a in enumerate(successful)]
    pairs = turn[:1] if len(successful) == 2 else turn[:lines]
    result: list[Point] = []
    for a, b in pairs:
        ends: tuple[tuple[Kind, int | None, Tensor], ...] = (
            ("trigger", b, triggers[b]),
            ("caption", None, caption),
            ("start", b, starts[b]),
        )
        for kind, end, goal in ends:
            along = between(triggers[a], goal, shares)
            result += [Point(kind, a, end, share, point) for share, point in zip(shares, along, strict=True)]
        result.append(Point("carried", a, b, 1.0, starts[b] + triggers[a] - starts[a]))
    chosen = list(successful)
    mean = (triggers[chosen] - starts[chosen]).mean(0)
    result += [Point("mean", None, index, 1.0, start + mean) for index, start in enumerate(fresh)]
    return result


def stacked(line_points: Sequence[Point]) -> Tensor:
    """(n, L, D) embeddings of the points."""
    return torch.stack([point.embedding for point in line_points])
