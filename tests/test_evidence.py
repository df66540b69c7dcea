"""Tail p-values, the empirical null and the controls that are needed, against scipy and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from diffkit.stats import benjamini_hochberg
from memorization.auditing.empirical_null import empirical_null
from memorization.auditing.evidence import (
    SMALLEST_P,
    controls_needed,
    fit_tail,
    largest_p,
    to_z,
)


def test_z_is_fishers() -> None:
    assert np.allclose(np.tanh(to_z([-0.3, 0.0, 0.9])), [-0.3, 0.0, 0.9])
    assert np.isfinite(to_z([1.0, -1.0, 1.2])).all()


def test_predictive_p_values_are_uniform_under_the_null() -> None:
    """A new control's p-value is below 0.05, and below 0.001, as often as it should be, with 15 controls only."""
    random = np.random.default_rng(0)
    p = []
    for _ in range(4000):
        sample = random.normal(0.4, 0.25, 16)
        mean, sd = sample[:15].mean(), sample[:15].std(ddof=1)
        fit = fit_tail(sample[:15])
        if fit is not None and fit.family == "normal":
            p.append(fit.p_value(sample[15]))
            expected = stats.t.sf((sample[15] - mean) / (sd * np.sqrt(1 + 1 / 15)), 14)
            assert p[-1] == pytest.approx(max(expected, SMALLEST_P))
    for level in (0.05, 0.01):
        low, high = stats.binomtest(int(np.sum(np.array(p) <= level)), len(p)).proportion_ci(0.999)
        assert low <= level <= high


def test_heavy_tails_are_seen_and_cost_power() -> None:
    random = np.random.default_rng(1)
    heavy = 0.3 + 0.1 * random.standard_t(2, size=49)
    heavier = 0.3 + 0.1 * random.standard_t(2, size=200)
    normal = random.normal(0.3, heavy.std(ddof=1), 49)
    fits = {"student": fit_tail(heavy), "pareto": fit_tail(heavier), "normal": fit_tail(normal)}
    assert {name: fit.family for name, fit in fits.items() if fit} == {name: name for name in fits}
    far = 0.3 + 8 * heavy.std(ddof=1)
    assert fits["student"].p_value(far) > 10 * fits["normal"].p_value(far)
    tail = fits["pareto"]
    above = heavier[heavier > tail.location]
    expected = (1 + len(above)) / 201 * stats.genpareto.sf(1.0, tail.shape, scale=tail.scale)
    assert tail.p_value(tail.location + 1.0) == pytest.approx(expected)
    assert tail.p_value(float(np.median(heavier))) == pytest.approx(0.5, abs=0.02)


def test_p_values_fall_and_end_at_one_in_a_million() -> None:
    for family, sample in {
        "normal": np.random.default_rng(2).normal(size=30),
        "student": np.random.default_rng(1).standard_t(2, size=49),
        "pareto": np.random.default_rng(3).standard_t(2, size=100),
    }.items():
        fit = fit_tail(sample)
        assert fit is not None
        assert fit.family == family
        p = [fit.p_value(z) for z in np.linspace(-5, 400, 200)]
        assert all(late <= early + 1e-9 for early, late in itertools.pairwise(p))
        assert min(p) >= SMALLEST_P
    assert fit_tail(np.random.default_rng(2).normal(size=30)).p_value(50) == SMALLEST_P


def test_too_few_or_equal_controls_have_no_tail() -> None:
    assert fit_tail([0.1] * 9) is None
    assert fit_tail([0.1] * 40) is None
    with pytest.raises(ValueError, match="finite"):
        fit_tail([float("nan")] * 20)


def test_the_harder_kind_of_controls_decides() -> None:
    random = np.random.default_rng(4)
    easy, hard = fit_tail(random.normal(0.0, 0.05, 100)), fit_tail(random.normal(0.5, 0.2, 12))
    p, kind = largest_p(1.0, {"scenes": easy, "photographs": hard})
    assert (p, kind) == (hard.p_value(1.0), "photographs")
    assert p > 1000 * easy.p_value(1.0)
    assert largest_p(1.0, {}) is None


def test_the_bulk_of_the_suspects_is_their_null() -> None:
    random = np.random.default_rng(5)
    z = np.concatenate([random.normal(0.4, 0.2, 950), random.normal(1.8, 0.2, 50)])
    null = empirical_null(z)
    assert null.mean == pytest.approx(0.4, abs=0.03)
    assert null.sd == pytest.approx(0.2, abs=0.02)
    assert null.share == pytest.approx(0.95, abs=0.03)
    q = benjamini_hochberg([null.p_value(value) for value in z])
    called = np.array(q) <= 0.05
    assert called[950:].mean() > 0.95
    assert called[:950].mean() < 0.02
    mixed = empirical_null(np.concatenate([random.normal(0.4, 0.2, 150), random.normal(1.8, 0.2, 150)]))
    assert mixed.share < 0.8 or mixed.sd > 0.4
    assert empirical_null(z[:199]) is None


def test_heavy_tails_of_the_bulk_are_seen_from_below() -> None:
    """A null suspect is called as rarely as alpha says, with the tails of t(4), where a normal bulk calls one often."""
    random = np.random.default_rng(6)
    heavy = [empirical_null(random.standard_t(4, size=500)) for _ in range(20)]
    normal = [empirical_null(random.normal(size=500)) for _ in range(20)]
    assert np.median([null.freedom for null in heavy]) <= 4
    assert np.median([null.freedom for null in normal]) >= 10
    assert np.median([null.share for null in heavy + normal]) == pytest.approx(1.0, abs=0.02)
    far = stats.t.isf(1e-4, 4)
    assert np.median([null.p_value(far) for null in heavy]) >= 0.5e-4
    memorized = np.concatenate([random.standard_t(4, size=450), random.normal(12, 1, 50)])
    with_memorized = empirical_null(memorized)
    assert with_memorized.share == pytest.approx(0.9, abs=0.04)
    assert stats.t.sf(12, 4) < with_memorized.p_value(12) < 0.005


def test_controls_that_are_needed() -> None:
    for suspects in (1, 14, 500):
        by_rank = controls_needed(suspects)
        assert 1 / (1 + by_rank) <= 0.05 / suspects + 1e-12 < 1 / by_rank
        fitted = controls_needed(suspects, deviations=6.0)
        assert stats.t.sf(6 / np.sqrt(1 + 1 / fitted), fitted - 1) <= 0.05 / suspects
        assert fitted <= by_rank or suspects == 1
    assert controls_needed(500, deviations=3.0) is None  # no number of controls makes 3 deviations rare enough
    assert controls_needed(100_000, deviations=20.0) is None  # extrapolation ends
