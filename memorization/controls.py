"""Controls, and what may be concluded from them: p-values, the pre-set budget, the verdicts.

An attack with enough steps draws any image, memorized or not. So the same attack, with the same starts, seeds and
budgets, runs on controls: images the model cannot have seen. A suspect counts as retained only at a budget at which
the controls stay away, and only when it comes out better than they do.

Everything here is a pure function of similarities, so that each rule can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from diffkit.stats import benjamini_hochberg, clopper_pearson, holm, rank_p_value

Verdict = Literal["replicated", "retained", "not shown", "inconclusive", "could not be scored"]
Correction = Literal["bh", "holm", "none"]
VERDICTS: tuple[Verdict, ...] = ("replicated", "retained", "not shown", "inconclusive", "could not be scored")
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


@dataclass(frozen=True)
class Finding:
    """The verdict on one suspect.

    Attributes:
        similarity: under the attack at the pre-set budget.
        p: share of the controls (the suspect counted among them) at least as similar at that budget.
        q: p corrected for the number of suspects.
    """

    key: str
    verdict: Verdict
    reason: str
    caption: float | None = None
    similarity: float | None = None
    p: float | None = None
    q: float | None = None


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


def judge(
    suspects: Sequence[Scores],
    controls: Sequence[Scores],
    *,
    threshold: float,
    alpha: float = 0.05,
    correction: Correction = "bh",
) -> tuple[list[Finding], ControlCheck]:
    """Give every suspect its verdict.

    - ``replicated``: the caption alone gives the image (caption similarity at or above the threshold).
    - ``retained``: it does not, but the attack does at the pre-set budget, and corrected p <= alpha.
    - ``not shown``: neither, at the pre-set budget.
    - ``inconclusive``: the controls are too few, come back themselves, or do not set the suspect apart; or the
      autoencoder blurs this image so much that the copy detector could not see a memory.
    - ``could not be scored``: no image to compare with, or its scoring failed.

    Controls that come out of their own captions put every verdict in doubt, ``replicated`` included; too few
    controls only those that rest on the attack.

    Args:
        suspects: scores of all suspects; the correction is over those that have a curve.
        controls: scores of all controls.
        threshold: the copy detector's operating point.
        alpha: level of the pre-set budget and of the corrected p-values.
        correction: "bh" (Benjamini-Hochberg, the false discovery rate), "holm" (any error at all) or "none".
    """
    check = check_controls(controls, threshold=threshold, alpha=alpha)
    reference = list(_at(controls, check.budget).values())
    similarity = _at(suspects, check.budget)
    scored = list(similarity)
    p = {key: rank_p_value(similarity[key], reference) for key in scored}
    q = dict(zip(scored, correct(list(p.values()), correction), strict=True))
    findings = []
    for suspect in suspects:
        key = suspect.key
        verdict, reason = _verdict(suspect, check, similarity.get(key), q.get(key), threshold, alpha)
        findings.append(Finding(key, verdict, reason, suspect.caption, similarity.get(key), p.get(key), q.get(key)))
    return findings, check


def _at(items: Sequence[Scores], budget: int | None) -> dict[str, float]:
    """Key -> similarity under the attack at a budget, of the items that were scored there."""
    if budget is None:
        return {}
    return {item.key: item.curve[budget] for item in items if item.curve is not None and budget in item.curve}


def correct(p: Sequence[float], correction: Correction) -> list[float]:
    """p-values corrected for their number."""
    if correction == "none":
        return list(p)
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def _verdict(
    suspect: Scores, check: ControlCheck, similarity: float | None, q: float | None, threshold: float, alpha: float
) -> tuple[Verdict, str]:
    if suspect.caption is None and suspect.curve is None:
        return "could not be scored", suspect.reason or "no similarity was measured"
    if suspect.caption is not None and suspect.caption >= threshold:
        if check.caption.share is not None and check.caption.share > alpha:
            return "inconclusive", f"the caption gives the image, but {check.failure}"
        return "replicated", f"the caption alone gives the image: {suspect.caption:.2f} >= {threshold:.2f}"
    if check.failure is not None:
        return "inconclusive", check.failure
    if similarity is None or q is None:
        return "could not be scored", suspect.reason or "the attack was not scored"
    at = f"at budget {check.budget}: {similarity:.2f}"
    if similarity < threshold and suspect.ceiling < threshold:
        why = f"its own copy by the autoencoder reaches only {suspect.ceiling:.2f}: a memory could not be seen"
        return "inconclusive", why
    if similarity < threshold:
        return "not shown", f"{at} < {threshold:.2f}"
    if q > alpha:
        why = f"{at} >= {threshold:.2f}, yet corrected p {q:.3f} > {alpha:g} with {check.n} controls: add controls"
        return "inconclusive", why
    return "retained", f"{at} >= {threshold:.2f}, corrected p {q:.3f}"
