"""The ladder's verdicts against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from memorization.auditing.controls import Scores
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

LOW, HIGH = {0: 0.1, 10: 0.2}, {0: 0.1, 10: 0.9}


def controls(n: int, curve: dict[int, float] = LOW) -> list[Scores]:
    return [Scores(f"control:{i}", 0.1, curve) for i in range(n)]


def rung(curve: dict[int, float], known: list[Scores] | None = None, caption: float = 0.2) -> Rung:
    return Rung([Scores("s", caption, curve)], known if known is not None else controls(30))


def one(rungs: dict[str, Rung], **options: object) -> Finding:
    (finding,), _ = judge_ladder(rungs, threshold=0.75, **options)  # type: ignore[arg-type]
    return finding


@pytest.mark.parametrize(
    ("weak", "strong", "verdict", "named"),
    [
        (rung(HIGH), rung(HIGH), "retained", "weak"),
        (rung(LOW), rung(HIGH), "retained", "strong"),
        (rung(HIGH), rung(LOW), "retained", "weak"),
        (rung(LOW), rung(LOW), "not shown", None),
        (rung(LOW), rung(HIGH, controls(30, HIGH)), "not shown", None),  # the strong one draws everything: set aside
        (rung(HIGH, controls(30, HIGH)), rung(HIGH, controls(30, HIGH)), "inconclusive", None),
        (rung(LOW), rung(HIGH, controls(19, {0: 0.1, 10: 0.1})), "retained", "strong"),
        (rung(LOW, caption=0.9), rung(LOW, caption=0.9), "replicated", "caption"),
    ],
)
def test_the_weakest_that_succeeds_is_named(weak: Rung, strong: Rung, verdict: str, named: str | None) -> None:
    finding = one({"weak": weak, "strong": strong}, correction="none")
    assert (finding.verdict, finding.rung) == (verdict, named)
    assert set(finding.rungs) == {"weak", "strong"}


def test_more_rungs_are_more_tests() -> None:
    """p = 1/31 for one rung; with a second rung that shows nothing the correction doubles it."""
    alone = one({"weak": rung(HIGH)})
    both = one({"weak": rung(HIGH), "strong": rung(LOW)})
    assert (alone.verdict, alone.q) == ("retained", pytest.approx(1 / 31))
    assert (both.verdict, both.rungs["weak"].q) == ("inconclusive", pytest.approx(2 / 31))


def test_a_doubt_at_one_rung_is_not_hidden_by_silence_at_another() -> None:
    """Similar enough, but so is a control: p = 2/31 is no proof, and "not shown" would deny it."""
    mixed = [*controls(29), Scores("control:x", 0.1, HIGH)]
    finding = one({"weak": rung(LOW), "strong": rung(HIGH, mixed)}, correction="none")
    assert finding.verdict == "inconclusive"
    assert "strong" in finding.reason


@pytest.mark.parametrize(
    ("caption", "curve", "there", "verdict"),
    [
        (0.2, HIGH, Scores("s", 0.1, LOW), "retained"),
        (0.2, HIGH, Scores("s", 0.1, HIGH), "inconclusive"),  # drawn by a model that cannot have seen it
        (0.2, HIGH, Scores("s", None, None, "broken"), "inconclusive"),  # asked for and not known
        (0.9, HIGH, Scores("s", 0.1, HIGH), "replicated"),  # the caption needs no attack
        (0.9, HIGH, Scores("s", 0.8, LOW), "inconclusive"),
        (0.2, LOW, Scores("s", 0.1, HIGH), "not shown"),
    ],
)
def test_the_reference_model(caption: float, curve: dict[int, float], there: Scores, verdict: str) -> None:
    asked = replace_reference(rung(curve, caption=caption), {"s": there})
    assert one({"attack": asked}).verdict == verdict


def replace_reference(known: Rung, reference: dict[str, Scores]) -> Rung:
    return known._replace(reference=reference)


def test_a_reference_without_this_suspect_leaves_a_doubt() -> None:
    finding = one({"attack": replace_reference(rung(HIGH), {})})
    assert finding.verdict == "inconclusive"
    assert "reference" in finding.reason


def test_figures_are_of_the_rung_the_verdict_rests_on() -> None:
    strong = replace(Scores("s", 0.2, HIGH), curve={0: 0.1, 10: 0.8})
    finding = one({"weak": rung(LOW), "strong": Rung([strong], controls(30))}, correction="none")
    assert (finding.similarity, finding.budget) == (0.8, 10)
