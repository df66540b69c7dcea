"""Agreement of early with final rewards: against scipy, brute force and closed forms; the edges are defined."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ttsnap.alignment import (
    FRACTIONS,
    bootstrap_ratio,
    budget_utilisation,
    expected_best_of_n,
    kendall,
    regret,
    survival,
    top_count,
    top_select,
)
from ttsnap.evaluation.replay import replay
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.pruning_schedule import PruningSchedule


def pair(seed: int, shape=(3, 4, 9), ties=False):
    rng = np.random.default_rng(seed)
    if ties:
        return rng.integers(0, 3, shape).astype(float), rng.integers(0, 3, shape).astype(float)
    return rng.normal(size=shape), rng.normal(size=shape)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans(), st.integers(2, 9))
def test_rank_correlation_against_scipy(seed, ties, size) -> None:
    a, b = pair(seed, (3, 4, size), ties)
    tau = kendall(a, b)
    assert tau.shape == (3, 4)
    for at in np.ndindex(3, 4):
        constant = np.ptp(a[at]) == 0 or np.ptp(b[at]) == 0
        expected = math.nan if constant else stats.kendalltau(a[at], b[at]).statistic
        np.testing.assert_allclose(tau[at], expected, atol=1e-12)


def test_mistake_10_a_constant_reward_has_no_tau_and_does_not_poison_the_mean() -> None:
    predicted = np.array([[1.0, 1, 1], [1, 2, 3], [3, 2, 1]])
    final = np.array([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]])
    np.testing.assert_equal(kendall(predicted, final), [math.nan, 1.0, -1.0])
    assert np.nanmean(kendall(predicted, final)) == 0
    np.testing.assert_equal(kendall(final, predicted), [math.nan, 1.0, -1.0])
    assert np.isnan(kendall(np.ones((2, 1)), np.ones((2, 1)))).all()  # one candidate
    np.testing.assert_equal(kendall(np.array([1.0, math.nan, 3]), np.array([1.0, 2, 3])), math.nan)


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    for bad in ((np.ones(3), np.ones(4)), (np.ones((2, 0)), np.ones((2, 0))), (np.float64(1), np.float64(1))):
        for metric in (kendall, top_select):
            with pytest.raises(ValueError, match="one shape"):
                metric(*bad)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans(), st.floats(0.01, 1))
def test_top_select_against_a_sorted_list(seed, ties, fraction) -> None:
    a, b = pair(seed, (5, 9), ties)
    found = top_select(a, b, [fraction])
    for p in range(5):
        kept = sorted(range(9), key=lambda i: (-a[p, i], i))[: top_count(fraction, 9)]
        lost = b[p].max() - max(b[p, i] for i in kept)
        assert found.gap[p, 0] == lost
        assert found.accuracy[p, 0] == (lost == 0)


def test_mistake_10_a_small_fraction_keeps_one_candidate_not_all() -> None:
    final = np.arange(8.0)
    for fraction in (0.05, 0.10):  # int(0.05 * 8) is 0
        assert top_count(fraction, 8) == 1
        assert top_select(-final, final, [fraction]) == (0, 7)
        assert top_select(final, final, [fraction]) == (1, 0)


def test_mistake_10_exactly_k_are_kept_on_ties() -> None:
    final = np.array([0.0, 1, 2, 3])
    found = top_select(np.zeros(4), final, [0.25, 0.5, 0.75, 1.0])
    assert found.accuracy.tolist() == [0, 0, 0, 1]
    assert found.gap.tolist() == [3, 2, 1, 0]


def test_top_select_at_its_edges() -> None:
    assert [top_count(fraction, 8) for fraction in (0.0625, 0.1875, 0.07, 1)] == [1, 2, 1, 8]  # halves round up
    assert top_count(0.07, 50) == 4  # 3.5, although 0.07 * 50 is a little more or less in floats
    assert top_select(np.ones((2, 1)), np.ones((2, 1))).accuracy.tolist() == [[1.0] * len(FRACTIONS)] * 2
    found = top_select(np.array([[1.0, math.nan], [1, 2]]), np.array([[1.0, 2], [1, 2]]), [0.5])
    np.testing.assert_equal(found.accuracy, [[math.nan], [1]])
    np.testing.assert_equal(found.gap, [[math.nan], [0]])
    for bad in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="fractions"):
            top_select(np.ones(3), np.ones(3), [bad])


def test_survival_and_regret_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for ties in (False, True):
        final = rng.integers(0, 4, (4, 8)).astype(float) if ties else rng.normal(size=(4, 8))
        one = RewardTensor(final[..., None] + rng.normal(size=(4, 8, 5)), final)
        found = replay(one, PruningSchedule((1, 3), (0.5, 0.5)), 6, resamples=7)
        reached, lacking = survival(found.stages, final), regret(found.values, final)
        for p in range(4):
            best = [max(final[p, i] for i in found.stages[0][p, r]) for r in range(7)]
            for j, stage in enumerate(found.stages):
                there = [max(final[p, i] for i in stage[p, r]) == best[r] for r in range(7)]
                assert reached[p, j] == pytest.approx(np.mean(there))
            assert lacking[p] == pytest.approx(np.mean([final[p].max() - final[p, w] for w in found.winners[p]]))
        assert (np.diff(reached, axis=1) <= 0).all()
        assert (reached[:, 0] == 1).all()


def test_survival_and_regret_do_not_invent_unknown_rewards() -> None:
    nan = math.nan
    final = np.array([[nan, nan, nan], [1, nan, 3]])
    stages = [np.array([[[0, 1]], [[0, 1]]]), np.array([[[0]], [[1]]])]
    np.testing.assert_equal(survival(stages, final), [[nan, nan], [1, 0]])
    np.testing.assert_equal(regret(np.array([[nan, nan], [1, nan]]), final), [nan, 2])


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_against_every_subset(n) -> None:
    final = np.random.default_rng(0).integers(0, 9, (3, 6)).astype(float)
    final[2, :4] = math.nan
    expected = []
    for row in final:
        best = [max(known) for some in itertools.combinations(row, n) if (known := [v for v in some if v == v])]
        expected.append(np.mean(best))
    np.testing.assert_allclose(expected_best_of_n(final, n), expected, rtol=1e-12)


def test_best_of_n_against_sampling_and_closed_forms() -> None:
    rng = np.random.default_rng(0)
    final = rng.normal(size=(1, 50))
    drawn = rng.permuted(np.tile(final, (20000, 1)), axis=1)[:, :7].max(axis=1)
    assert expected_best_of_n(final, 7)[0] == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(20000))
    many = rng.normal(size=(2, 200))
    np.testing.assert_allclose(expected_best_of_n(many, 1), many.mean(axis=1))
    np.testing.assert_allclose(expected_best_of_n(many, 200), many.max(axis=1))
    np.testing.assert_allclose(expected_best_of_n(np.arange(1.0, 1001), 9), 9 * 1001 / 10)  # n (M + 1) / (n + 1)
    assert expected_best_of_n(np.array([5.0]), 1) == 5
    assert np.isnan(expected_best_of_n(np.full(4, math.nan), 2))
    for n in (0, 5):
        with pytest.raises(ValueError, match="expected 1 to 4"):
            expected_best_of_n(np.ones(4), n)


def test_utilisation_of_straight_lines_is_their_ratio() -> None:
    budgets = np.arange(400, 4001, 200)
    slope = np.linspace(1, 3, 20)[:, None]
    best = 5 + slope * (budgets - 400)
    twice = 5 + 2 * slope * (budgets - 400)
    for curve, gain in ((best, 0), (twice, 100), (10 - best, -200)):
        assert budget_utilisation(curve, best, budgets) == pytest.approx((gain, gain, gain))
    higher = budget_utilisation(best + 100, best, budgets)  # a constant advantage counts, from the first budget on
    assert higher.gain == pytest.approx(100 * 100 * 3600 / (slope.mean() * 3600**2 / 2))
    assert higher.low < higher.gain < higher.high
    parabola = budget_utilisation(5 + (budgets - 400.0)[None] ** 2, best[:1], budgets)  # Simpson is exact for it
    assert parabola.gain == pytest.approx(100 * (3600**3 / 3 / (3600**2 / 2) - 1))


def test_utilisation_is_undefined_or_refused_at_its_edges() -> None:
    flat = np.ones((3, 4))
    assert all(math.isnan(value) for value in budget_utilisation(flat + 1, flat, [1, 2, 3, 4]))
    rising = flat * [1, 2, 3, 4]
    for bad in ((flat[:, :3], rising, [1, 2, 3, 4]), (flat[0], rising[0], [1, 2, 3, 4]), (flat, rising, [1, 3, 2, 4]),
                (flat * math.nan, rising, [1, 2, 3, 4]), (flat[:, :1], rising[:, :1], [1])):  # fmt: skip
        with pytest.raises(ValueError):
            budget_utilisation(*bad)


def test_the_interval_covers_the_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        below = rng.normal(2, 0.5, 60)
        above = 1.5 * below + rng.normal(0, 0.5, 60)
        low, high = bootstrap_ratio(above, below, resamples=400, seed=trial)
        hits += low <= 1.5 <= high
    assert 0.90 <= hits / 200 <= 0.98
    assert all(math.isnan(end) for end in bootstrap_ratio([1.0, 1], [1.0, -1]))  # the mean below may be 0
    assert bootstrap_ratio([3.0], [2.0]) == (1.5, 1.5)
