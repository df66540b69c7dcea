"""Tail p-values, the empirical null and the controls that are needed, against scipy and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize, stats

from diffkit.stats import benjamini_hochberg
from memorization.auditing.empirical_null import empirical_null
from memorization.auditing.evidence import (
    SMALLEST_P,
    as_normal,
    controls_needed,
    fit_tail,
    largest_p,
    least_deviations,
    to_z,
)
from memorization.auditing.predictive_t import PRIOR, PredictiveT, predictive_t


def test_z_is_fishers() -> None:
    assert np.allclose(np.tanh(to_z([-0.3, 0.0, 0.9])), [-0.3, 0.0, 0.9])
    assert np.isfinite(to_z([1.0, -1.0, 1.2])).all()


def test_with_normal_tails_it_is_students_predictive_distribution() -> None:
    random = np.random.default_rng(0)
    for n in (10, 15, 30, 200):
        sample = random.normal(0.4, 0.25, n)
        predictive = predictive_t(sample, {1e6: 1.0})
        for z in np.linspace(-0.2, 1.6, 7):
            deviations = (z - sample.mean()) / (sample.std(ddof=1) * np.sqrt(1 + 1 / n))
            assert predictive.survival(z) == pytest.approx(stats.t.sf(deviations, n - 1), rel=0.05)


def test_the_average_over_tails_against_a_plain_integral() -> None:
    """Location, scale and degrees of freedom on an even grid of other variables, by scipy's densities."""
    sample = np.random.default_rng(1).standard_t(3, size=12)
    predictive, z = predictive_t(sample), 6.0
    m, s = np.linspace(-6, 6, 241), np.linspace(0.05, 12, 480)
    evidence, tails = [], []
    for freedom, prior in PRIOR.items():
        logs = sum(stats.t.logpdf(x, freedom, m[:, None], s[None, :]) for x in sample)
        weight = prior * np.exp(logs) / s  # flat in log s
        evidence.append(weight.sum())
        tails.append((weight * stats.t.sf(z, freedom, m[:, None], s[None, :])).sum())
    assert predictive.probabilities == pytest.approx(np.array(evidence) / sum(evidence), abs=0.005)
    assert predictive.survival(z) == pytest.approx(sum(tails) / sum(evidence), rel=0.01)
    grid = np.linspace(-60, 60, 4001)
    assert np.trapezoid(predictive.density(grid), grid) == pytest.approx(1.0, abs=0.01)


def least_called(predictive: PredictiveT, level: float) -> float:
    """The least value whose p-value is a level."""
    return optimize.brentq(lambda z: np.log(predictive.survival(z) / level), 0, 1000, xtol=1e-3)


@pytest.mark.parametrize(("freedom", "most"), [(1e6, 1.0), (6.0, 1.0), (3.0, 1.6)])
def test_a_null_suspect_is_called_as_rarely_as_its_p_value_says(freedom: float, most: float) -> None:
    """The true probability of a p-value of at most 0.01, and of 1e-4, with 15 controls."""
    random = np.random.default_rng(2)
    for level in (0.01, 1e-4):
        shares = []
        for _ in range(60):
            least = least_called(predictive_t(random.standard_t(freedom, size=15)), level)
            shares.append(stats.t.sf(least, freedom))
        assert np.mean(shares) - 2 * stats.sem(shares) <= most * level


def test_heavy_tails_are_seen_and_cost_power() -> None:
    random = np.random.default_rng(1)
    heavy = 0.3 + 0.1 * random.standard_t(2, size=49)
    heavier = 0.3 + 0.1 * random.standard_t(2, size=200)
    normal = random.normal(0.3, heavy.std(ddof=1), 49)
    fits = {"heavy": fit_tail(heavy), "pareto": fit_tail(heavier), "normal": fit_tail(normal)}
    assert {name: fit.family for name, fit in fits.items() if fit} == {"heavy": "t", "pareto": "pareto", "normal": "t"}
    assert fits["heavy"].shape <= 3
    assert fits["normal"].shape >= 10
    far = 0.3 + 8 * heavy.std(ddof=1)
    assert fits["heavy"].p_value(far) > 5 * fits["normal"].p_value(far)
    tail = fits["pareto"]
    above = heavier[heavier > tail.location]
    expected = (1 + len(above)) / 201 * stats.genpareto.sf(1.0, tail.shape, scale=tail.scale)
    assert tail.p_value(tail.location + 1.0) == pytest.approx(expected)
    assert tail.p_value(float(np.median(heavier))) == pytest.approx(0.5, abs=0.02)


def test_p_values_fall_and_end_at_one_in_a_million() -> None:
    samples = {
        "t": np.random.default_rng(1).standard_t(2, size=49),
        "pareto": np.random.default_rng(3).standard_t(2, size=100),
    }
    for family, sample in samples.items():
        fit = fit_tail(sample)
        assert fit is not None
        assert fit.family == family
        p = [fit.p_value(z) for z in np.linspace(-5, 400, 200)]
        assert all(late <= early + 1e-9 for early, late in itertools.pairwise(p))
        assert min(p) >= SMALLEST_P
        if family == "t":
            exact = [fit.predictive.survival(z) for z in np.linspace(-5, 20, 50)]
            assert [fit.p_value(z) for z in np.linspace(-5, 20, 50)] == pytest.approx(exact, rel=1e-3)
    assert fit_tail(np.random.default_rng(2).normal(size=300).clip(-2, 2)).p_value(500) == SMALLEST_P


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
        fitted = controls_needed(suspects, deviations=8.0)
        assert as_normal(fitted).p_value(8.0) <= 0.05 / suspects
        assert fitted == 10 or as_normal(fitted - 1).p_value(8.0) > 0.05 / suspects
        least = least_deviations(suspects, 30)
        assert as_normal(30).p_value(least) == pytest.approx(0.05 / suspects, rel=0.01)
    assert controls_needed(500, deviations=3.0) is None  # no number of controls makes 3 deviations rare enough
    assert controls_needed(100_000, deviations=20.0) is None  # extrapolation ends


def test_ties_at_the_top_have_no_pareto_tail() -> None:
    values = [*np.random.default_rng(0).exponential(size=45), *[9.0] * 15]
    fit = fit_tail(values)
    assert fit is not None
    assert fit.family == "t"
    assert least_deviations(1, 30, alpha=0.6) == 0
