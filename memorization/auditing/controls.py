"""Which attack budgets the controls support; the verdicts themselves are in verdicts.py.

An attack with enough steps reproduces any image, memorized or not. Therefore the same attack, with the same starts,
seeds and budgets, runs on controls: images the model was not trained on. A suspect counts as retained only at a budget
at which the controls are not reproduced, and only when its similarity exceeds theirs.

All functions are pure functions of similarities.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffkit.stats import Rate, rate

Correction = Literal["bh", "holm", "none"]
#: Why an attack ended before its last budget, or was not begun: the verdict was certain; its caption replicates it;
#: the triage ranked it low; the reference model reproduces the image. See memorization/auditing/effort.py.
Stopped = Literal["certain", "caption", "triage", "reference"]
MIN_CONTROLS = 19  # fewer cannot give a p-value of 0.05: the smallest is 1 / (1 + N)


@dataclass(frozen=True)
class Scores:
    """What was measured of one suspect or control.

    Attributes:
        key: identifies the item.
        caption: similarity to its image(s) when generated from the caption alone, over seeds; None = not scored.
        curve: budget -> similarity under the attack, the best start's; None = not scored.
        reason: why something is missing.
        kind: of a control, such as "scene"; controls of different kinds are never pooled for a fit.
        stopped: whether the attack ended at the last look of the curve because the answer was certain there.
        skipped: why it was not attacked, though it could have been: "caption" or "triage".
        ceiling: similarity of the image to itself after the model's own autoencoder, the most any copy can reach.
    """

    key: str
    caption: float | None = None
    curve: Mapping[int, float] | None = None
    reason: str | None = None
    ceiling: float = 1.0
    kind: str | None = None
    stopped: bool = False
    skipped: str | None = None


def by_caption(items: Sequence[Scores]) -> dict[str, float]:
    """Key -> similarity by the caption alone, of the items that were scored."""
    return {item.key: item.caption for item in items if item.caption is not None}


def up_to(items: Sequence[Scores], budget: int | None) -> dict[str, float]:
    """Key -> highest similarity at any look of the attack up to a budget; empty for None.

    The maximum only grows with the budget, so that an attack can stop at the first look that decides. The start itself,
    budget 0, is no attack and counts for budget 0 alone. Left out are items whose attack ended before the budget,
    unless it ended because the answer was certain.
    """
    if budget is None:
        return {}
    highest = {}
    for item in items:
        looks = {at: value for at, value in (item.curve or {}).items() if at == budget == 0 or 0 < at <= budget}
        if looks and (item.stopped or max(item.curve or {}) >= budget):
            highest[item.key] = max(looks.values())
    return highest


def by_kind(values: Mapping[str, float], items: Sequence[Scores]) -> dict[str, list[float]]:
    """Values by key, grouped by the kind of their items."""
    groups: dict[str, list[float]] = {}
    for item in items:
        if item.key in values:
            groups.setdefault(item.kind or "controls", []).append(values[item.key])
    return groups


def share_reaching(threshold: float, similarities: Collection[float]) -> Rate:
    """How many similarities are at or above the threshold."""
    return rate(sum(similarity >= threshold for similarity in similarities), len(similarities))


@dataclass(frozen=True)
class ControlCheck:
    """Whether the controls support a verdict, and up to which budget.

    Attributes:
        n: controls scored under the attack.
        caption: how many are reproduced by their caption alone.
        by_budget: budget -> how many are reproduced under the attack.
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


def fewest_controls(alpha: float) -> int:
    """Controls without which no attack verdict is given: with fewer no rank reaches alpha.

    Example:
        >>> fewest_controls(0.05), fewest_controls(0.01), fewest_controls(0.2)
        (19, 99, 19)
    """
    return max(MIN_CONTROLS, math.ceil(1 / alpha - 1e-9) - 1)


def check_controls(controls: Sequence[Scores], *, threshold: float, alpha: float) -> ControlCheck:
    """Choose the pre-set budget and check that there are enough controls, not reproduced themselves.

    Budget 0 is no attack, so it never is the pre-set budget.

    Args:
        controls: scores of all controls, the unscored ones included.
        threshold: similarity from which an image counts as reproduced.
        alpha: share of the controls that may be reproduced, in (0, 1).
    """
    curves = [control.curve for control in controls if control.curve is not None]
    caption = share_reaching(threshold, by_caption(controls).values())
    budgets = sorted({budget for curve in curves for budget in curve})
    by_budget = {budget: share_reaching(threshold, up_to(controls, budget).values()) for budget in budgets}
    within = [budget for budget, back in by_budget.items() if budget > 0 and not exceeds(back, alpha)]
    n = len(curves)
    failure = None
    if exceeds(caption, alpha):
        failure = (
            f"{caption['count']} of {caption['n']} controls come out of their caption alone: were they trained on?"
        )
    elif n < (needed := fewest_controls(alpha)):
        failure = f"{n} controls were scored under the attack; at least {needed} are needed"
    elif not within:
        failure = f"the attack brings back more than {alpha:.0%} of the controls at every budget"
    return ControlCheck(n, caption, by_budget, max(within, default=None), 1 / (1 + n), failure)


def exceeds(share: Rate, limit: float) -> bool:
    """Whether a share is known and above a limit."""
    return share["share"] is not None and share["share"] > limit
