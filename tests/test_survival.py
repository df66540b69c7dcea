"""Work to threshold against scipy's Kaplan-Meier and log-rank, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffkit.errors import InputError
from diffkit.stats import clopper_pearson
from memorization.auditing.kaplan_meier import Work, kaplan_meier, log_rank, median_work, work_to_threshold

works = st.lists(st.builds(Work, st.integers(1, 9).map(float), st.booleans()), min_size=1, max_size=30)


def censored(group: list[Work]) -> stats.CensoredData:
    return stats.CensoredData(uncensored=[w.work for w in group if w.back], right=[w.work for w in group if not w.back])


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ({0: 0.1, 10: 0.8, 50: 0.9}, Work(10, True)),
        ({0: 0.1, 10: 0.8, 50: 0.2}, Work(10, True)),  # back once is back
        ({50: 0.74, 0: 0.1, 10: 0.2}, Work(50, False)),
        ({0: 0.75}, Work(0, True)),  # at the threshold counts
    ],
)
def test_work_to_threshold(curve: dict[int, float], expected: Work) -> None:
    assert work_to_threshold(curve, 0.75) == expected


def test_no_budgets_are_refused() -> None:
    with pytest.raises(InputError, match="budget"):
        work_to_threshold({}, 0.5)


@given(works)
def test_the_curve_is_scipys(group: list[Work]) -> None:
    steps = kaplan_meier(group)
    reference = stats.ecdf(censored(group)).sf
    assert [step.work for step in steps] == list(reference.quantiles)
    assert [step.share for step in steps] == pytest.approx(list(reference.probabilities))
    for step in steps:
        assert 0 <= step.low <= step.share + 1e-12
        assert step.share - 1e-12 <= step.high <= 1


def test_the_interval_is_scipys() -> None:
    group = [Work(w, b) for w, b in [(1, True), (2, True), (2, False), (5, True), (5, True), (8, False), (9, False)]]
    interval = stats.ecdf(censored(group)).sf.confidence_interval(0.95, method="log-log")
    for index, step in enumerate(kaplan_meier(group)):
        assert step.low == pytest.approx(interval.low.probabilities[index])
        assert step.high == pytest.approx(interval.high.probabilities[index])


def test_nobody_and_everybody_back() -> None:
    (never,) = kaplan_meier([Work(50, False)] * 20)
    assert (never.share, never.high) == (1.0, 1.0)
    assert never.low == pytest.approx(clopper_pearson(20, 20).low)
    (always,) = kaplan_meier([Work(10, True)] * 20)
    assert (always.share, always.low) == (0.0, 0.0)
    assert always.high == pytest.approx(clopper_pearson(0, 20).high)
    assert kaplan_meier([]) == []


def test_median_work() -> None:
    assert median_work(kaplan_meier([Work(1, True), Work(10, True), Work(50, False)])) == 10
    assert median_work(kaplan_meier([Work(1, True), Work(50, False), Work(50, False)])) is None


@given(works, works)
def test_log_rank_is_scipys(one: list[Work], other: list[Work]) -> None:
    found = log_rank(one, other)
    with np.errstate(all="ignore"):
        reference = stats.logrank(censored(one), censored(other)).pvalue
    if found is None:
        assert not np.isfinite(reference)
    else:
        assert found == pytest.approx(reference)
