"""Verdicts: the conclusion from caption, attacks, controls and reference model for each suspect.

Every attack is one rung of a ladder and is judged on its own against its own controls; the verdict names the weakest
that succeeds. All functions are pure functions of similarities.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from diffkit.stats import benjamini_hochberg, holm
from memorization.attack.ladder import CAPTION
from memorization.auditing.controls import (
    MIN_CONTROLS,
    ControlCheck,
    Correction,
    Scores,
    by_caption,
    check_controls,
    exceeds,
    up_to,
)
from memorization.auditing.p_values import Null, PValues, as_z, caption_null, differences

Verdict = Literal["replicated", "retained", "not shown", "not attacked", "inconclusive", "could not be scored"]
VERDICTS: tuple[Verdict, ...] = (
    "replicated",
    "retained",
    "not shown",
    "not attacked",
    "inconclusive",
    "could not be scored",
)


class RungFinding(NamedTuple):
    """The result of one attack for one suspect, up to that attack's pre-set budget.

    ``similarity``: the highest at any look up to the budget; ``p``: its p-values; ``q``: the deciding one, corrected
    for the number of suspects and rungs; ``reference``: similarity of the same attack on the reference model.
    """

    verdict: Verdict
    reason: str
    budget: int | None = None
    similarity: float | None = None
    p: PValues | None = None
    q: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Finding:
    """The verdict on one suspect.

    Attributes:
        rung: the weakest rung that succeeds: "caption", an attack's name, or None.
        budget: of the rung that decides the verdict; ``similarity``, ``p``, ``q`` likewise. It is the weakest that
            succeeds, else the strongest whose controls are usable.
        caption_p: p-values of the caption's similarity against the controls' captions; ``caption_q``: corrected.
        reference_caption: similarity by caption on the reference model; None without one.
        rungs: every attack's own finding, from weak to strong; a suspect that its caption replicates need have none.
    """

    key: str
    verdict: Verdict
    reason: str
    rung: str | None = None
    budget: int | None = None
    caption: float | None = None
    similarity: float | None = None
    p: PValues | None = None
    q: float | None = None
    caption_p: PValues | None = None
    caption_q: float | None = None
    reference_caption: float | None = None
    rungs: Mapping[str, RungFinding] = field(default_factory=dict)


class Rung(NamedTuple):
    """One attack's scores: of suspects, of controls, and of both on the reference model, by key, if there is one.

    Audits of earlier versions attacked no controls on the reference.
    """

    suspects: Sequence[Scores]
    controls: Sequence[Scores]
    reference: Mapping[str, Scores] | None = None
    reference_controls: Mapping[str, Scores] | None = None

    @property
    def has_reference(self) -> bool:
        """Whether a reference model takes part."""
        return self.reference is not None or self.reference_controls is not None

    def null(self, budget: int | None, *, replicated: Collection[str]) -> Null:
        """Of differences to the reference where enough controls were attacked there, else of similarities."""
        if self.reference_controls is not None:
            of_differences = Null.of_differences(self.controls, self.reference_controls, budget)
            if len(of_differences.controls) >= MIN_CONTROLS:
                return of_differences
        return Null.of(self.suspects, self.controls, budget, left_out=replicated)


class Judged(NamedTuple):
    """The verdicts on the suspects; under each attack, weak to strong, the check of the controls and the null."""

    findings: list[Finding]
    checks: dict[str, ControlCheck]
    nulls: dict[str, Null]


def judge_ladder(
    rungs: Mapping[str, Rung], *, threshold: float, alpha: float = 0.05, correction: Correction = "bh"
) -> Judged:
    """Give every suspect its verdict.

    - ``replicated``: the caption alone gives the image: similarity at or above the threshold, and above the controls'
      captions with corrected p <= alpha where there are enough of these.
    - ``retained``: it does not, or not beyond doubt, but an attack does up to its pre-set budget: similarity at or
      above the threshold, below it on the reference model, above the controls with rank p <= alpha, and with corrected
      p <= alpha by the tail (:mod:`memorization.auditing.p_values`). Where controls were attacked on the reference too,
      what is compared with theirs is the difference to it, and suspects that do not reach the threshold count with a p
      of 1.
    - ``not shown``: no attack with usable controls does.
    - ``not attacked``: the caption does not, and the triage ranked the suspect too low for an attack.
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
            the suspects that their captions do not replicate, times the rungs. Whether those were attacked too does not
            change it.
    """
    checks = {name: check_controls(rung.controls, threshold=threshold, alpha=alpha) for name, rung in rungs.items()}
    first = next(iter(rungs.values()))
    captions = _caption_tests(first, correction)
    replicated = {
        key
        for key, value in by_caption(first.suspects).items()
        if value >= threshold and _passes(captions[key].q, alpha)
    }
    nulls = {name: rung.null(checks[name].budget, replicated=replicated) for name, rung in rungs.items()}
    tests = _attack_tests(rungs, checks, nulls, replicated, correction, threshold)
    findings = []
    for index, suspect in enumerate(first.suspects):
        by_rung = {
            name: _by_attack(rung, index, checks[name], tests.get((name, suspect.key)), threshold, alpha)
            for name, rung in rungs.items()
            if rung.suspects[index].curve is not None or suspect.key not in replicated
        }
        reference = first.reference.get(suspect.key) if first.reference is not None else None
        findings.append(_combine(suspect, by_rung, checks, captions.get(suspect.key), reference, threshold, alpha))
    return Judged(findings, checks, nulls)


class _Test(NamedTuple):
    p: PValues | None
    q: float | None


def _passes(q: float | None, alpha: float) -> bool:
    """Whether a corrected p-value is small enough, or there is none."""
    return q is None or q <= alpha


def correct(p: Sequence[float], correction: Correction) -> list[float]:
    """p-values corrected for their number."""
    if correction == "none":
        return list(p)
    return holm(p) if correction == "holm" else benjamini_hochberg(p)


def _caption_tests(rung: Rung, correction: Correction) -> dict[str, _Test]:
    """The test of each suspect's caption against the controls' captions; without a fit of these there is none."""
    null = caption_null(rung.controls)
    p = {key: null.p_values(z) if null.tails else None for key, z in as_z(by_caption(rung.suspects)).items()}
    q = correct([values.deciding for values in p.values() if values is not None], correction)
    corrected = iter(q)
    return {key: _Test(values, None if values is None else next(corrected)) for key, values in p.items()}


def _attack_tests(
    rungs: Mapping[str, Rung],
    checks: Mapping[str, ControlCheck],
    nulls: Mapping[str, Null],
    replicated: set[str],
    correction: Correction,
    threshold: float,
) -> dict[tuple[str, str], _Test]:
    """The test of each suspect under each attack.

    Those that their captions replicate are no part of the family that is corrected: each is corrected as if it were one
    more, so that it does not matter whether they were attacked.
    """
    p = {
        (name, key): values
        for name, rung in rungs.items()
        for key, values in _p_values(rung, nulls[name], checks[name].budget, threshold).items()
    }
    family = {pair: 1.0 if values is None else values.deciding for pair, values in p.items()}
    others = {pair: family.pop(pair) for pair in p if pair[1] in replicated}
    q = dict(zip(family, correct(list(family.values()), correction), strict=True))
    for pair, value in others.items():
        q[pair] = correct([*family.values(), value], correction)[-1]
    return {pair: _Test(values, q[pair]) for pair, values in p.items()}


def _p_values(rung: Rung, null: Null, budget: int | None, threshold: float) -> dict[str, PValues | None]:
    """p-values by key of the suspects that were attacked; None, which counts as 1, without a difference to test.

    That is below the threshold, where the reference model draws the image too, and where it could not be scored: an
    audit in the order of work does not know their differences, and none of them can be retained.
    """
    similarities = up_to(rung.suspects, budget)
    if null.statistic == "similarity":
        return {key: null.p_values(z) for key, z in as_z(similarities).items()}
    reference = rung.reference or {}
    far = differences(rung.suspects, reference, budget)
    tested = {
        key for key in far if similarities[key] >= threshold > up_to([reference[key]], budget)[reference[key].key]
    }
    return {key: null.p_values(far[key]) if key in tested else None for key in similarities}


def _by_attack(
    rung: Rung, index: int, check: ControlCheck, test: _Test | None, threshold: float, alpha: float
) -> RungFinding:
    """One attack's finding. With a reference model that could not be scored there is no "retained"."""
    suspect = rung.suspects[index]
    if check.failure is not None:
        return RungFinding("inconclusive", check.failure)
    if suspect.skipped == "triage":
        return RungFinding("not attacked", "the triage ranked it too low for an attack", check.budget)
    similarity = up_to([suspect], check.budget).get(suspect.key)
    if similarity is None or test is None or test.q is None:
        return RungFinding("could not be scored", suspect.reason or "the attack was not scored", check.budget)
    p, q = test.p, test.q
    reference = rung.reference.get(suspect.key) if rung.reference is not None else None
    on_reference = None if reference is None else up_to([reference], check.budget).get(reference.key)
    at = f"up to budget {check.budget}: {similarity:.2f}"

    def finding(verdict: Verdict, reason: str) -> RungFinding:
        return RungFinding(verdict, reason, check.budget, similarity, p, q if p else None, on_reference)

    if similarity < threshold and suspect.ceiling < threshold:
        why = f"its own copy by the autoencoder reaches only {suspect.ceiling:.2f}: a memory could not be seen"
        return finding("inconclusive", why)
    if similarity < threshold:
        return finding("not shown", f"{at} < {threshold:.2f}")
    if rung.has_reference and on_reference is None:
        return finding("inconclusive", f"{at} >= {threshold:.2f}, but the reference model could not be scored")
    if on_reference is not None and on_reference >= threshold:
        why = f"{at}, but the reference model, which cannot have seen it, draws it too: {on_reference:.2f}"
        return finding("inconclusive", why)
    assert p is not None, "what reaches the threshold, and on the reference does not, is tested"
    if p.rank > alpha:
        why = f"{at} >= {threshold:.2f}, yet controls are as {p.far}: p {p.rank:.3f} by rank of {check.n} controls"
        return finding("inconclusive", why)
    if q > alpha:
        why = f"{at} >= {threshold:.2f}, yet corrected p {q:.3f} > {alpha:g} {p.source}: add controls"
        return finding("inconclusive", why)
    return finding("retained", f"{at} >= {threshold:.2f}, corrected p {q:.2g} {p.source}")


def _combine(
    suspect: Scores,
    by_rung: Mapping[str, RungFinding],
    checks: Mapping[str, ControlCheck],
    caption: _Test | None,
    reference: Scores | None,
    threshold: float,
    alpha: float,
) -> Finding:
    """One verdict from all rungs; a rung with unusable controls is left out while another's are usable."""
    reference_caption = reference.caption if reference is not None else None
    caption = caption or _Test(None, None)

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
            caption_p=caption.p,
            caption_q=caption.q,
            reference_caption=reference_caption,
            rungs=by_rung,
        )

    usable = {name: result for name, result in by_rung.items() if checks[name].failure is None}
    strongest = list((usable or by_rung).values())[-1] if by_rung else None
    if suspect.caption is None and suspect.curve is None:
        return finding("could not be scored", suspect.reason or "no similarity was measured")
    if suspect.caption is not None and suspect.caption >= threshold:
        conclusion = _by_caption(suspect.caption, checks, caption, reference_caption, threshold, alpha)
        acquitted = reference_caption is not None and reference_caption >= threshold
        by_attack = any(result.verdict == "retained" for result in usable.values())
        if conclusion[0] == "replicated" or acquitted or not by_attack:
            return finding(*conclusion, decisive=strongest)
    if not usable:
        return finding("inconclusive", strongest.reason if strongest else "it was not attacked")
    several = len(by_rung) > 1

    def reason(name: str) -> str:
        return f"{name} {usable[name].reason}" if several else usable[name].reason

    for verdict in ("retained", "inconclusive", "could not be scored", "not attacked"):
        for name, result in usable.items():
            if result.verdict == verdict:
                return finding(verdict, reason(name), name if verdict == "retained" else None, result)
    return finding("not shown", "; ".join(reason(name) for name in usable), decisive=strongest)


def _by_caption(
    similarity: float,
    checks: Mapping[str, ControlCheck],
    test: _Test,
    reference: float | None,
    threshold: float,
    alpha: float,
) -> tuple[Verdict, str, str | None]:
    """Verdict, reason and rung of a suspect whose caption alone gives the image."""
    check = next(iter(checks.values()))
    if exceeds(check.caption, alpha):
        return "inconclusive", f"the caption gives the image, but {check.failure}", None
    if test.p is not None and test.q is not None and not _passes(test.q, alpha):
        why = f"the caption gives the image: {similarity:.2f} >= {threshold:.2f}, yet corrected p {test.q:.3f}"
        return "inconclusive", f"{why} > {alpha:g} {test.p.source}: add controls", None
    if reference is not None and reference >= threshold:
        why = (
            f"the caption gives the image, but so does the reference model, which cannot have seen it: {reference:.2f}"
        )
        return "inconclusive", why, None
    return "replicated", f"the caption alone gives the image: {similarity:.2f} >= {threshold:.2f}", CAPTION
