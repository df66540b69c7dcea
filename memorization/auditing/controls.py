"""Controls, and up to which budget they carry a conclusion; the verdicts themselves are in verdicts.py.

An attack with enough steps draws any image, memorized or not. So the same attack, with the same starts, seeds and
budgets, runs on controls: images the model cannot have seen. A suspect counts as retained only at a budget at which
the controls stay away, and only when it comes out better than they do.

Everything here is a pure function of similarities, so that each rule can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffkit.stats import clopper_pearson

Correction = Literal["bh", "holm", "none"]
MIN_CONTROLS = 19  # fewer cannot give a p-value of 0.05: the smallest is 1 / (1 + N)


@dataclass(frozen=True)
class Scores:
    """What was measured of one suspect or control.

    Attributes:
        key: identifies the item.
        caption: similarity to its image(s) when generated from the caption alone, over seeds; None = not scored.
        curve: budget -> similarity under the attack, the best start's; None = not scored.
        reason: why something is missing.
        ceiling: similarity of the image to itself after the model's own autoencoder, the most any copy can reach.
    """

    key: str
    caption: float | None = None
    curve: Mapping[int, float] | None = None
    reason: str | None = None
    ceiling: float = 1.0


@dataclass(frozen=True)
class Rate:
    """``count`` of ``n``, with a 95 % Clopper-Pearson interval; both None when there is nothing to count."""

    count: int
    n: int
    share: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ControlCheck:
    """Whether the controls carry a conclusion, and up to which budget.

    Attributes:
        n: controls scored under the attack.
        caption: how many come out of their caption alone.
        by_budget: budget -> how many come back under the attack.
        budget: the pre-set budget: the largest with a control rate within alpha; None when there is none.
        smallest_p: 1 / (1 + n).
        failure: why attack verdicts cannot be given; None when they can.
    """

    n: int
    caption: Rate
    by_budget: Mapping[int, Rate]
    budget: int | None
    smallest_p: float
    failure: str | None


def rate(count: int, n: int) -> Rate:
    """A share with its interval."""
    if n == 0:
        return Rate(0, 0, None, None)
    low, high = clopper_pearson(count, n)
    return Rate(count, n, count / n, (low, high))


def check_controls(controls: Sequence[Scores], *, threshold: float, alpha: float) -> ControlCheck:
    """Find the pre-set budget and whether there are enough controls that behave.

    Budget 0 is no attack, so it never is the pre-set budget.

    Args:
        controls: scores of all controls, the unscored ones included.
        threshold: similarity from which an image counts as brought back.
        alpha: share of the controls that may come back, in (0, 1).
    """
    captions = [c.caption for c in controls if c.caption is not None]
    curves = [c.curve for c in controls if c.curve is not None]
    by_caption = rate(sum(s >= threshold for s in captions), len(captions))
    budgets = sorted({budget for curve in curves for budget in curve})
    by_budget = {b: rate(sum(c[b] >= threshold for c in curves if b in c), len(curves)) for b in budgets}
    within = [b for b, r in by_budget.items() if b > 0 and r.share is not None and r.share <= alpha]
    n = len(curves)
    failure = None
    if by_caption.share is not None and by_caption.share > alpha:
        failure = (
            f"{by_caption.count} of {by_caption.n} controls come out of their caption alone: were they trained on?"
        )
    elif n < MIN_CONTROLS:
        failure = f"{n} controls were scored under the attack; at least {MIN_CONTROLS} are needed"
    elif not within:
        failure = f"the attack brings back more than {alpha:.0%} of the controls at every budget"
    return ControlCheck(n, by_caption, by_budget, max(within, default=None), 1 / (1 + n), failure)
