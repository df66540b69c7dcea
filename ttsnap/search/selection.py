"""Who goes on: pure functions from scores to survivors. NaN never survives; ties go to the lower index.

An image that the safety checker flags comes after every other, whatever its score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["ranking", "top_k"]


def ranking(
    scores: Sequence[float], *, higher_is_better: bool = True, flagged: Sequence[bool] | None = None
) -> list[int]:
    """Positions of the finite scores from best to worst; equal scores keep their order.

    Args:
        flagged: for each whether it comes after all that are not.
    """
    sign = -1.0 if higher_is_better else 1.0
    last = [False] * len(scores) if flagged is None else flagged
    finite = [position for position, score in enumerate(scores) if math.isfinite(score)]
    return sorted(finite, key=lambda position: (last[position], sign * scores[position], position))


def top_k(scores: Sequence[float], k: int, *, higher_is_better: bool = True) -> list[int]:
    """Positions, rising, of the ``k`` best scores; fewer when fewer are finite (fixed fractions of TTSnap)."""
    return sorted(ranking(scores, higher_is_better=higher_is_better)[:k])
