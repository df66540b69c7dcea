"""Several winners that differ: maximal marginal relevance over the best finished images.

Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries",
SIGIR 1998: greedily take the image i that maximizes ``(1 - d) r_i - d max_j s_ij``, where j runs over those taken
already. Here r is the reward, scaled to [0, 1] between the worst and the best of the images to choose from, and s the
correlation of thumbnails, 0 where it is negative. With d = 0 these are the best by reward; the best image is always
among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["POOL", "chosen", "marginal_relevance", "thumbnails"]

POOL = 4  # images to choose from, for each image asked for: the best by reward
SIDE = 12  # of a thumbnail


def thumbnails(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 3 * 12 * 12) float32 of length 1, each channel of mean zero; 0 for flat images.

    Of videos (B, frames, 3, H, W) the thumbnails of all frames.

    Example:
        >>> images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> (thumbnails(images) @ thumbnails(0.5 * images).T).diagonal().round(decimals=4)
        tensor([1., 1.])
    """
    flat = images.float().view(-1, *images.shape[-3:])
    small = F.interpolate(flat, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return F.normalize((small - small.mean((-2, -1), keepdim=True)).view(len(images), -1), dim=1, eps=1e-3)


def marginal_relevance(relevance: Tensor, similarity: Tensor, count: int, diversity: float) -> list[int]:
    """Greedy choice by ``(1 - d) r - d max s``; ties go to the lower index.

    Args:
        relevance: (n,) in [0, 1], higher is better; the first taken is its maximum.
        similarity: (n, n) in [0, 1].
        count: how many to take, at most n.
        diversity: d, in [0, 1].

    Example:
        >>> relevance, twins = torch.tensor([1.0, 0.9, 0.5]), torch.tensor([[1.0, 1.0, 0.0]] * 2 + [[0.0, 0.0, 1.0]])
        >>> marginal_relevance(relevance, twins, 2, 0.0), marginal_relevance(relevance, twins, 2, 0.5)
        ([0, 1], [0, 2])
    """
    taken = [int(relevance.argmax())]
    while len(taken) < count:
        marginal = (1 - diversity) * relevance - diversity * similarity[:, taken].amax(1)
        marginal[taken] = -torch.inf
        taken.append(int(marginal.argmax()))
    return taken


def chosen(
    ranked: Sequence[int],
    scores: Mapping[int, float],
    images: Mapping[int, Tensor],
    flagged: Sequence[int],
    *,
    count: int,
    diversity: float,
) -> list[int]:
    """Those of the ranked images that win, best first.

    Args:
        ranked: the images to choose from, best first.
        scores: of each; their direction is that of the ranking.
        images: of each, (3, H, W), or (frames, 3, H, W).
        flagged: those that come after all others; they are the last of the ranking.
        count: how many to take.
        diversity: d; 0 takes the first of the ranking.
    """
    clean = [item for item in ranked if item not in flagged]
    if not diversity or len(clean) <= count:
        return list(ranked[:count])
    values = torch.tensor([scores[item] for item in clean], dtype=torch.float64)
    spread = (values - values[-1]).abs()
    described = thumbnails(torch.stack([images[item] for item in clean])).double()
    relevance = spread / spread.max().clamp(min=1e-12)
    taken = marginal_relevance(relevance, (described @ described.T).clamp(0, 1), count, diversity)
    return [clean[place] for place in sorted(taken)]
