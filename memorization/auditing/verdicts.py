"""Verdicts: what caption, attacks, controls and the reference model together say about each suspect.

Every attack is one rung of a ladder and is judged on its own against its own controls; the weakest that succeeds is
named. Pure functions of similarities, so that each rule can be checked by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from diffkit.stats import benjamini_hochberg, holm, rank_p_value
from memorization.auditing.controls import ControlCheck, Correction, Scores, check_controls

Verdict = Literal["replicated", "retained", "not shown", "inconclusive", "could not be scored"]
VERDICTS: tuple[Verdict, ...] = ("replicated", "retained", "not shown", "inconclusive", "could not be scored")
CAPTION = "caption"  # the lowest rung: no attack at all


class RungFinding(NamedTuple):
    """What one attack says about one suspect, at the budget its own controls allow.

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
        budget: of the rung the verdict rests on; ``similarity``, ``p``, ``q`` likewise. It is the weakest that
            succeeds, else the strongest whose controls hold.
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


def judge(
    suspects: Sequence[Scores],
    controls: Sequence[Scores],
    *,
    threshold: float,
    alpha: float = 0.05,
    correction: Correction = "bh",
) -> tuple[list[Finding], ControlCheck]:
    """:func:`judge_ladder` for a single attack without a reference model."""
    rung = {"attack": Rung(suspects, controls)}
    findings, checks = judge_ladder(rung, threshold=threshold, alpha=alpha, correction=correction)
    return findings, checks["attack"]


def judge_ladder(
    rungs: Mapping[str, Rung], *, threshold: float, alpha: float = 0.05, correction: Correction = "bh"
) -> tuple[list[Finding], dict[str, ControlCheck]]:
    """Give every suspect its verdict.

    - ``replicated``: the caption alone gives the image (caption similarity at or above the threshold).
    - ``retained``: it does not, but an attack does at its pre-set budget, with corrected p <= alpha.
    - ``not shown``: no attack whose controls hold does.
    - ``inconclusive``: the controls are too few, come back themselves, or do not set the suspect apart; the reference
      model, which cannot have seen the image, draws it too; or the autoencoder blurs this image so much that the copy
      detector could not see a memory.
    - ``could not be scored``: no image to compare with, or its scoring failed.

    Controls that come out of their own captions put every verdict in doubt, ``replicated`` included; too few
    controls, or controls that come back under one attack, only those that rest on that attack.

    Args:
        rungs: scores by attack, from the weakest to the strongest; the same suspects, in the same order, in each.
        threshold: the copy detector's operating point.
        alpha: level of the pre-set budgets and of the corrected p-values.
        correction: "bh" (Benjamini-Hochberg, the false discovery rate), "holm" (any error at all) or "none"; over
            all suspects with a curve, times the rungs.
    """
    checks = {name: check_controls(rung.controls, threshold=threshold, alpha=alpha) for name, rung in rungs.items()}
    p = {
        (name, key): rank_p_value(similarity, list(_at(rung.controls, checks[name].budget).values()))
        for name, rung in rungs.items()
        for key, similarity in _at(rung.suspects, checks[name].budget).items()
    }
    q = dict(zip(p, correct(list(p.values()), correction), strict=True))
    first = next(iter(rungs.values()))
    findings = []
    for index, suspect in enumerate(first.suspects):
        single = {}
        for name, rung in rungs.items():
            values = (p.get((name, suspect.key)), q.get((name, suspect.key)))
            known = rung.reference.get(suspect.key) if rung.reference is not None else None
            asked = rung.reference is not None
            single[name] = _by_attack(rung.suspects[index], checks[name], values, known, asked, threshold, alpha)
        caption = first.reference.get(suspect.key) if first.reference is not None else None
        findings.append(_combine(suspect, single, checks, caption, threshold, alpha))
    return findings, checks


def correct(p: Sequence[float], correction: Correction) -> list[float]:
    """p-values corrected for their number."""
    if correction == "none":
        return list(p)
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def _at(items: Sequence[Scores], budget: int | None) -> dict[str, float]:
    """Key -> similarity under the attack at a budget, of the items that were scored there."""
    if budget is None:
        return {}
    return {item.key: item.curve[budget] for item in items if item.curve is not None and budget in item.curve}


def _by_attack(
    suspect: Scores,
    check: ControlCheck,
    tested: tuple[float | None, float | None],
    reference: Scores | None,
    asked: bool,
    threshold: float,
    alpha: float,
) -> RungFinding:
    """One attack's finding. ``asked``: a reference model was wanted, so one without a score leaves a doubt."""
    if check.failure is not None:
        return RungFinding("inconclusive", check.failure)
    similarity, (p, q) = _at([suspect], check.budget).get(suspect.key), tested
    if similarity is None or q is None:
        return RungFinding("could not be scored", suspect.reason or "the attack was not scored", check.budget)
    there = None if reference is None else _at([reference], check.budget).get(reference.key)
    at = f"at budget {check.budget}: {similarity:.2f}"

    def finding(verdict: Verdict, reason: str) -> RungFinding:
        return RungFinding(verdict, reason, check.budget, similarity, p, q, there)

    if similarity < threshold and suspect.ceiling < threshold:
        why = f"its own copy by the autoencoder reaches only {suspect.ceiling:.2f}: a memory could not be seen"
        return finding("inconclusive", why)
    if similarity < threshold:
        return finding("not shown", f"{at} < {threshold:.2f}")
    if q > alpha:
        why = f"{at} >= {threshold:.2f}, yet corrected p {q:.3f} > {alpha:g} with {check.n} controls: add controls"
        return finding("inconclusive", why)
    if asked and there is None:
        return finding("inconclusive", f"{at} >= {threshold:.2f}, but the reference model could not be scored")
    if there is not None and there >= threshold:
        why = f"{at}, but the reference model, which cannot have seen it, draws it too: {there:.2f}"
        return finding("inconclusive", why)
    return finding("retained", f"{at} >= {threshold:.2f}, corrected p {q:.3f}")


def _combine(
    suspect: Scores,
    single: Mapping[str, RungFinding],
    checks: Mapping[str, ControlCheck],
    reference: Scores | None,
    threshold: float,
    alpha: float,
) -> Finding:
    """One verdict from all rungs: rungs whose controls fail are set aside as long as another's hold."""
    there = reference.caption if reference is not None else None

    def finding(verdict: Verdict, reason: str, rung: str | None = None, rests: RungFinding | None = None) -> Finding:
        values = rests or RungFinding(verdict, reason)
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
            reference_caption=there,
            rungs=single,
        )

    usable = {name: one for name, one in single.items() if checks[name].failure is None}
    strongest = list(usable.values() or single.values())[-1]
    if suspect.caption is None and suspect.curve is None:
        return finding("could not be scored", suspect.reason or "no similarity was measured")
    if suspect.caption is not None and suspect.caption >= threshold:
        return finding(*_by_caption(suspect.caption, checks, there, threshold, alpha), rests=strongest)
    if not usable:
        return finding("inconclusive", strongest.reason)
    several = len(single) > 1

    def said(name: str) -> str:
        return f"{name} {usable[name].reason}" if several else usable[name].reason

    for verdict in ("retained", "inconclusive", "could not be scored"):
        for name, one in usable.items():
            if one.verdict == verdict:
                return finding(verdict, said(name), name if verdict == "retained" else None, one)
    return finding("not shown", "; ".join(said(name) for name in usable), rests=strongest)


def _by_caption(
    similarity: float, checks: Mapping[str, ControlCheck], there: float | None, threshold: float, alpha: float
) -> tuple[Verdict, str, str | None]:
    check = next(iter(checks.values()))
    if check.caption.share is not None and check.caption.share > alpha:
        return "inconclusive", f"the caption gives the image, but {check.failure}", None
    if there is not None and there >= threshold:
        why = f"the caption gives the image, but so does the reference model, which cannot have seen it: {there:.2f}"
        return "inconclusive", why, None
    return "replicated", f"the caption alone gives the image: {similarity:.2f} >= {threshold:.2f}", CAPTION
