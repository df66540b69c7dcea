"""Verdicts: the conclusion from caption, attacks, controls and reference model for each suspect.

Every attack is one rung of a ladder and is judged on its own against its own controls; the verdict names the weakest
that succeeds. All functions are pure functions of similarities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from diffkit.stats import benjamini_hochberg, holm, rank_p_value
from memorization.attack.ladder import CAPTION
from memorization.auditing.controls import ControlCheck, Correction, Scores, at_budget, check_controls, exceeds

Verdict = Literal["replicated", "retained", "not shown", "inconclusive", "could not be scored"]
VERDICTS: tuple[Verdict, ...] = ("replicated", "retained", "not shown", "inconclusive", "could not be scored")


class RungFinding(NamedTuple):
    """The result of one attack for one suspect, at that attack's pre-set budget.

    ``p``: share of the controls (the suspect counted among them) at least as similar; ``q``: corrected for the number
    of suspects and rungs; ``reference``: similarity of the same attack on the reference model.
    """

    verdict: Verdict
    reason: str
    budget: int | None = None
    similarity: float | None = None
    p: float | None = None
    q: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Finding:
    """The verdict on one suspect.

    Attributes:
        rung: the weakest rung that succeeds: "caption", an attack's name, or None.
        budget: of the rung that decides the verdict; ``similarity``, ``p``, ``q`` likewise. It is the weakest that
            succeeds, else the strongest whose controls are usable.
        reference_caption: similarity by caption on the reference model; None without one.
        rungs: every attack's own finding, from weak to strong.
    """

    key: str
    verdict: Verdict
    reason: str
    rung: str | None = None
    budget: int | None = None
    caption: float | None = None
    similarity: float | None = None
    p: float | None = None
    q: float | None = None
    reference_caption: float | None = None
    rungs: Mapping[str, RungFinding] = field(default_factory=dict)


class Rung(NamedTuple):
    """One attack's scores: of suspects, of controls, and of the suspects on the reference model, if there is one."""

    suspects: Sequence[Scores]
    controls: Sequence[Scores]
    reference: Mapping[str, Scores] | None = None


def judge_ladder(
    rungs: Mapping[str, Rung], *, threshold: float, alpha: float = 0.05, correction: Correction = "bh"
) -> tuple[list[Finding], dict[str, ControlCheck]]:
    """Give every suspect its verdict.

    - ``replicated``: the caption alone gives the image (caption similarity at or above the threshold).
    - ``retained``: it does not, but an attack does at its pre-set budget, with corrected p <= alpha.
    - ``not shown``: no attack with usable controls does.
    - ``inconclusive``: the controls are too few, are reproduced themselves, or are as similar as the suspect; the
      reference model, which was not trained on the image, reproduces it too; or the autoencoder blurs this image so
      much that the copy detector could not detect a copy.
    - ``could not be scored``: no image to compare with, or its scoring failed.

    Controls that are reproduced by their own captions invalidate every verdict, ``replicated`` included; too few
    controls, or controls that are reproduced under one attack, only those of that attack.

    Args:
        rungs: scores by attack, from the weakest to the strongest; the same suspects, in the same order, in each.
        threshold: the copy detector's operating point.
        alpha: level of the pre-set budgets and of the corrected p-values.
        correction: "bh" (Benjamini-Hochberg, the false discovery rate), "holm" (any error at all) or "none"; over
            all suspects with a curve, times the rungs.
    """
    checks = {name: check_controls(rung.controls, threshold=threshold, alpha=alpha) for name, rung in rungs.items()}
    p = {
        (name, key): rank_p_value(similarity, list(at_budget(rung.controls, checks[name].budget).values()))
        for name, rung in rungs.items()
        for key, similarity in at_budget(rung.suspects, checks[name].budget).items()
    }
    q = dict(zip(p, correct(list(p.values()), correction), strict=True))
    first = next(iter(rungs.values()))
    findings = []
    for index, suspect in enumerate(first.suspects):
        by_rung = {}
        for name, rung in rungs.items():
            p_values = (p.get((name, suspect.key)), q.get((name, suspect.key)))
            reference = rung.reference.get(suspect.key) if rung.reference is not None else None
            required = rung.reference is not None
            by_rung[name] = _by_attack(
                rung.suspects[index], checks[name], p_values, reference, required, threshold, alpha
            )
        caption = first.reference.get(suspect.key) if first.reference is not None else None
        findings.append(_combine(suspect, by_rung, checks, caption, threshold, alpha))
    return findings, checks


def correct(p: Sequence[float], correction: Correction) -> list[float]:
    """p-values corrected for their number."""
    if correction == "none":
        return list(p)
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def _by_attack(
    suspect: Scores,
    check: ControlCheck,
    p_values: tuple[float | None, float | None],
    reference: Scores | None,
    required: bool,
    threshold: float,
    alpha: float,
) -> RungFinding:
    """One attack's finding. ``required``: the audit has a reference model; without its score no "retained"."""
    if check.failure is not None:
        return RungFinding("inconclusive", check.failure)
    similarity, (p, q) = at_budget([suspect], check.budget).get(suspect.key), p_values
    if similarity is None or q is None:
        return RungFinding("could not be scored", suspect.reason or "the attack was not scored", check.budget)
    on_reference = None if reference is None else at_budget([reference], check.budget).get(reference.key)
    at = f"at budget {check.budget}: {similarity:.2f}"

    def finding(verdict: Verdict, reason: str) -> RungFinding:
        return RungFinding(verdict, reason, check.budget, similarity, p, q, on_reference)

    if similarity < threshold and suspect.ceiling < threshold:
        why = f"its own copy by the autoencoder reaches only {suspect.ceiling:.2f}: a memory could not be seen"
        return finding("inconclusive", why)
    if similarity < threshold:
        return finding("not shown", f"{at} < {threshold:.2f}")
    if q > alpha:
        why = f"{at} >= {threshold:.2f}, yet corrected p {q:.3f} > {alpha:g} with {check.n} controls: add controls"
        return finding("inconclusive", why)
    if required and on_reference is None:
        return finding("inconclusive", f"{at} >= {threshold:.2f}, but the reference model could not be scored")
    if on_reference is not None and on_reference >= threshold:
        why = f"{at}, but the reference model, which cannot have seen it, draws it too: {on_reference:.2f}"
        return finding("inconclusive", why)
    return finding("retained", f"{at} >= {threshold:.2f}, corrected p {q:.3f}")


def _combine(
    suspect: Scores,
    by_rung: Mapping[str, RungFinding],
    checks: Mapping[str, ControlCheck],
    reference: Scores | None,
    threshold: float,
    alpha: float,
) -> Finding:
    """One verdict from all rungs; a rung with unusable controls is left out while another's are usable."""
    reference_caption = reference.caption if reference is not None else None

    def finding(verdict: Verdict, reason: str, rung: str | None = None, decisive: RungFinding | None = None) -> Finding:
        values = decisive or RungFinding(verdict, reason)
        return Finding(
            suspect.key,
            verdict,
            reason,
            rung,
            budget=values.budget,
            caption=suspect.caption,
            similarity=values.similarity,
            p=values.p,
            q=values.q,
            reference_caption=reference_caption,
            rungs=by_rung,
        )

    usable = {name: result for name, result in by_rung.items() if checks[name].failure is None}
    strongest = list(usable.values() or by_rung.values())[-1]
    if suspect.caption is None and suspect.curve is None:
        return finding("could not be scored", suspect.reason or "no similarity was measured")
    if suspect.caption is not None and suspect.caption >= threshold:
        return finding(*_by_caption(suspect.caption, checks, reference_caption, threshold, alpha), decisive=strongest)
    if not usable:
        return finding("inconclusive", strongest.reason)
    several = len(by_rung) > 1

    def reason(name: str) -> str:
        return f"{name} {usable[name].reason}" if several else usable[name].reason

    for verdict in ("retained", "inconclusive", "could not be scored"):
        for name, result in usable.items():
            if result.verdict == verdict:
                return finding(verdict, reason(name), name if verdict == "retained" else None, result)
    return finding("not shown", "; ".join(reason(name) for name in usable), decisive=strongest)


def _by_caption(
    similarity: float, checks: Mapping[str, ControlCheck], reference: float | None, threshold: float, alpha: float
) -> tuple[Verdict, str, str | None]:
    """Verdict, reason and rung of a suspect whose caption alone gives the image."""
    check = next(iter(checks.values()))
    if exceeds(check.caption, alpha):
        return "inconclusive", f"the caption gives the image, but {check.failure}", None
    if reference is not None and reference >= threshold:
        why = (
            f"the caption gives the image, but so does the reference model, which cannot have seen it: {reference:.2f}"
        )
        return "inconclusive", why, None
    return "replicated", f"the caption alone gives the image: {similarity:.2f} >= {threshold:.2f}", CAPTION
