"""Verdicts, p-values and the pre-set budget against cases worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memorization.auditing.controls import ControlCheck, Scores, check_controls
from memorization.auditing.p_values import power
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

LOW = {0: 0.1, 10: 0.2, 50: 0.3}
HIGH = {0: 0.1, 10: 0.9, 50: 0.9}
LATE = {0: 0.1, 10: 0.2, 50: 0.9}


def controls(n: int, curve: dict[int, float] = LOW, caption: float = 0.1) -> list[Scores]:
    return [Scores(f"control:{curve}:{caption}:{i}", caption, curve) for i in range(n)]


def judge(
    suspects: list[Scores], known: list[Scores], threshold: float, **options: float
) -> tuple[list[Finding], ControlCheck]:
    """The verdicts of a single attack without a reference model."""
    findings, checks, _ = judge_ladder({"attack": Rung(suspects, known)}, threshold=threshold, **options)
    return findings, checks["attack"]


def verdict(suspect: Scores, known: list[Scores], **options: float) -> str:
    (finding,), _ = judge([suspect], known, threshold=0.75, **options)
    return finding.verdict


@pytest.mark.parametrize(
    ("suspect", "known", "expected"),
    [
        (Scores("s", 0.9, HIGH), controls(19), "replicated"),
        (Scores("s", 0.75, LOW), controls(19), "replicated"),  # at the threshold counts
        (Scores("s", 0.9, HIGH), [], "replicated"),  # the caption needs no control
        (Scores("s", 0.2, HIGH), controls(19), "retained"),
        (Scores("s", 0.2, LOW), controls(19), "not shown"),
        (Scores("s", 0.2, HIGH), controls(18), "inconclusive"),  # p could not be below 1/19 = 0.053
        (Scores("s", 0.2, LOW), controls(18), "inconclusive"),
        (Scores("s", 0.2, HIGH), [], "inconclusive"),
        (Scores("s", 0.2, HIGH), controls(10) + controls(10, HIGH), "inconclusive"),  # controls come back everywhere
        (Scores("s", 0.9, HIGH), controls(18) + controls(2, LOW, caption=0.9), "inconclusive"),  # trained on?
        (Scores("s", 0.2, LATE), controls(18) + controls(2, LATE), "not shown"),  # budget falls back to 10
        (Scores("s", 0.2, HIGH), controls(18) + controls(2, LATE), "retained"),
        (Scores("s", 0.2, LOW, ceiling=0.7), controls(19), "inconclusive"),  # a perfect copy would not be seen
        (Scores("s", 0.2, HIGH, ceiling=0.7), controls(19), "retained"),
        (Scores("s", None, None, "no image to compare with"), controls(19), "could not be scored"),
    ],
)
def test_verdict(suspect: Scores, known: list[Scores], expected: str) -> None:
    assert verdict(suspect, known) == expected


def test_p_value_counts_the_suspect_among_the_controls() -> None:
    known = [*controls(27), Scores("control:x", 0.1, {0: 0.1, 10: 0.1, 50: 0.8})]
    (finding,), check = judge([Scores("s", 0.2, {0: 0.1, 10: 0.1, 50: 0.8})], known, threshold=0.75)
    assert check.budget == 50  # 1 of 28 is within 0.05
    assert finding.p is not None
    assert finding.p.rank == pytest.approx(2 / 29)
    assert finding.verdict == "inconclusive"  # similar enough, but so is a control


def test_the_budget_is_the_largest_at_which_controls_stay_away() -> None:
    check = check_controls(controls(18) + controls(2, LATE), threshold=0.75, alpha=0.05)
    assert {b: r["count"] for b, r in check.by_budget.items()} == {0: 0, 10: 0, 50: 2}
    assert check.budget == 10
    assert check.smallest_p == pytest.approx(1 / 21)


def test_one_retained_among_many_needs_more_controls() -> None:
    suspects = [Scores("s", 0.2, HIGH)] + [Scores(f"t{i}", 0.2, {0: 0.1, 10: 0.1, 50: 0.1}) for i in range(9)]
    few, _ = judge(suspects, controls(28), threshold=0.75)
    many, _ = judge(suspects, controls(199), threshold=0.75)
    assert (few[0].p.rank, few[0].q) == (pytest.approx(1 / 29), pytest.approx(10 / 29))
    assert few[0].verdict == "inconclusive"
    assert many[0].verdict == "retained"  # q = 10 / 200
    uncorrected, _ = judge(suspects, controls(28), threshold=0.75, correction="none")
    assert uncorrected[0].verdict == "retained"


def test_unscored_items_are_in_every_total() -> None:
    suspects = [Scores("a", 0.9, HIGH), Scores("b", None, None, "no image to compare with"), Scores("c", 0.1, LOW)]
    findings, check = judge(suspects, [*controls(19), Scores("control:lost", None, None, "gone")], threshold=0.75)
    assert [f.verdict for f in findings] == ["replicated", "could not be scored", "not shown"]
    assert findings[1].p is None
    assert check.n == 19


@given(st.lists(st.floats(-1, 1), min_size=19, max_size=40), st.floats(-1, 1))
def test_retained_never_without_better_than_the_controls(known: list[float], similarity: float) -> None:
    others = [Scores(f"control:{i}", 0.0, {0: 0.0, 10: value}) for i, value in enumerate(known)]
    (finding,), _ = judge([Scores("s", 0.0, {0: 0.0, 10: similarity})], others, threshold=0.75)
    if finding.verdict == "retained":
        assert similarity >= 0.75
        assert (1 + sum(value >= similarity for value in known)) / (1 + len(known)) <= 0.05


def test_a_smaller_alpha_needs_more_controls() -> None:
    check = check_controls(controls(30), threshold=0.75, alpha=0.01)
    assert check.failure == "30 controls were scored under the attack; at least 99 are needed"
    assert check_controls(controls(99), threshold=0.75, alpha=0.01).failure is None
    assert power(1, [30], 0.01)["deviations"] is None
