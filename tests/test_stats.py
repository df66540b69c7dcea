"""Statistics against scipy, brute force and figures worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from diffkit import stats

shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)
scores = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (1, 1), (97, 240), (0, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_clopper_pearson_is_scipys_exact_interval(k: int, n: int, confidence: float) -> None:
    reference = scipy.stats.binomtest(k, n).proportion_ci(confidence, method="exact")
    assert stats.clopper_pearson(k, n, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_clopper_pearson_by_hand() -> None:
    assert stats.clopper_pearson(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert stats.clopper_pearson(0, 0) == (0.0, 1.0)
    for k, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            stats.clopper_pearson(k, n)


def test_bootstrap_interval_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(3, 2, 200)
    interval = stats.bootstrap_mean(values)
    reference = scipy.stats.t.interval(0.95, 199, values.mean(), scipy.stats.sem(values))
    assert interval == pytest.approx(reference, abs=0.06)
    assert stats.bootstrap_mean(values) == interval
    assert stats.bootstrap_mean([2.0]) == (2.0, 2.0)
    narrow = stats.bootstrap_mean(values, 0.5)
    assert interval.low < narrow.low < narrow.high < interval.high


def test_rank_p_value_by_hand() -> None:
    controls = [0.1, 0.2, 0.3, 0.4]
    assert stats.rank_p_value(0.9, controls) == 1 / 5
    assert stats.rank_p_value(0.3, controls) == 3 / 5  # a tie counts against the suspect
    assert stats.rank_p_value(0.0, controls) == 1.0
    assert stats.rank_p_value(0.0, controls, higher=False) == 1 / 5
    assert stats.rank_p_value(1.0, [0.0] * 19) == 0.05


def test_rank_p_values_of_exchangeable_values_are_uniform() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 20))
    p = [stats.rank_p_value(row[0], row[1:]) for row in draws]
    for alpha in (0.05, 0.25, 0.5):
        assert np.mean(np.array(p) <= alpha) == pytest.approx(alpha, abs=0.025)


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]) == []
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


@given(shares)
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    for alpha in (0.05, 0.3):
        rejected = set()
        for step, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] * (len(p) - step) > alpha:
                break
            rejected.add(index)
        assert {index for index, value in enumerate(stats.holm(p)) if value <= alpha} == rejected


@given(shares)
def test_benjamini_hochberg_is_scipys(p: list[float]) -> None:
    assert stats.benjamini_hochberg(p) == pytest.approx(list(scipy.stats.false_discovery_control(p)))


@given(scores, scores, st.booleans())
def test_auc_is_the_share_of_pairs_won(positives: list[int], negatives: list[int], higher: bool) -> None:
    sign = 1 if higher else -1
    wins = [np.sign(sign * (a - b)) / 2 + 0.5 for a, b in itertools.product(positives, negatives)]
    assert stats.auc(positives, negatives, higher=higher) == pytest.approx(np.mean(wins))


@given(scores, scores, st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_allowed_threshold(positives: list[int], negatives: list[int], fpr: float) -> None:
    thresholds = [*positives, *negatives, math.inf, -math.inf]
    allowed = [t for t in thresholds if np.mean(np.array(negatives) > t) <= fpr + 1e-12]
    best = max(float(np.mean(np.array(positives) > t)) for t in allowed)
    assert stats.tpr_at_fpr(positives, negatives, fpr) == best
    mirrored = stats.tpr_at_fpr([-v for v in positives], [-v for v in negatives], fpr, higher=False)
    assert mirrored == best


def test_what_is_unknown_is_refused() -> None:
    nan = float("nan")
    for call in (
        lambda: stats.rank_p_value(nan, [0.1]),
        lambda: stats.rank_p_value(0.1, [nan]),
        lambda: stats.bootstrap_mean([1.0, nan]),
        lambda: stats.auc([1.0], [nan]),
        lambda: stats.holm([nan]),
    ):
        with pytest.raises(ValueError, match="finite"):
            call()
    with pytest.raises(ValueError, match="at least 1 values, got 0"):
        stats.rank_p_value(0.1, [])
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        stats.benjamini_hochberg([1.5])
    with pytest.raises(ValueError, match="confidence"):
        stats.clopper_pearson(1, 2, 95)
