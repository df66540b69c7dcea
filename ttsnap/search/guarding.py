"""A copy guard at a look: what it says of the images, and which candidates it drops.

A candidate whose image may not win has no score from then on, like one that could not be scored: no strategy keeps it.
Its previews are black, so that no copy is shown either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from diffkit.copy_guard import CopyGuard, guarded, is_guarded
from diffkit.errors import InputError

__all__ = ["Guarded", "drop_copies", "too_few"]


class Guarded(NamedTuple):
    """Scores, NaN for a copy; reasons why there is none; similarities to forbidden pictures, empty without guard."""

    scores: list[float]
    reasons: list[str | None]
    similarities: list[float]


def drop_copies(
    guard: CopyGuard | None, images: Tensor, scores: Sequence[float], reasons: Sequence[str | None]
) -> Guarded:
    """Take the score from the images that may not win.

    Args:
        images: (B, 3, H, W) in [0, 1].
        scores: of the images.
        reasons: why there is no score; a guard's goes before.

    Raises:
        InputError: the guard does not judge every image.
    """
    if guard is None:
        return Guarded([*scores], [*reasons], [])
    checks = guard.check(images)
    if len(checks) != len(images):
        raise InputError(f"The copy guard {guard.name!r} judged {len(checks)} of {len(images)} images.")
    return Guarded(
        [score if check.reason is None else math.nan for check, score in zip(checks, scores, strict=True)],
        [
            reason if check.reason is None else guarded(check.reason)
            for check, reason in zip(checks, reasons, strict=True)
        ],
        [check.similarity for check in checks],
    )


def too_few(prompt: int, step: int, scored: int, candidates: int, needed: int, reasons: Mapping[int, str]) -> str:
    """The sentence for a prompt of which too few candidates are left.

    Example:
        >>> print(too_few(0, 5, 1, 4, 2, {3: "copy guard: like cat.png"}))
        Only 1 of 4 candidates of prompt 0 are left after step 5, 2 needed: the copy guard drops 1 (like cat.png); ...
    """
    copies = [reason for reason in reasons.values() if is_guarded(reason)]
    if copies:
        return (
            f"Only {scored} of {candidates} candidates of prompt {prompt} are left after step {step}, {needed} needed: "
            f"the copy guard drops {len(copies)} ({copies[0].removeprefix(guarded(''))}); try more candidates, or "
            f"another prompt."
        )
    first = next(iter(reasons.values()), "none was left")
    return (
        f"Only {scored} of {candidates} candidates of prompt {prompt} could be scored after step {step}, {needed} "
        f"needed: {first}."
    )
