"""The plots show the numbers that the pure functions give; what cannot be drawn is refused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from diffkit.errors import InputError
from ttsnap.alignment import FRACTIONS, top_count
from ttsnap.evaluation.budget_curves import budget_curves
from ttsnap.plots.alignment import label_ends, tau_by_noise, top_select_curves
from ttsnap.plots.budget import budget_figure, schedule_figure
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.pruning_schedule import PruningSchedule

SIGMAS = (float("inf"), 4.0, 2.0, 1.0, 0.5, 0.1)


def made(seed=0, sigmas=None, missing=()):
    rng = np.random.default_rng(seed)
    final = rng.normal(size=(5, 8))
    looks = final[..., None] + rng.normal(size=(5, 8, 6)) * np.linspace(2, 0, 6)
    looks[:, :, list(missing)] = np.nan
    return RewardTensor(looks, final, "made", sigmas)


def test_tau_is_drawn_at_its_noise_level_as_scipy_counts_it() -> None:
    tensor = made(sigmas=SIGMAS, missing=[2])
    line = tau_by_noise({"a": tensor}).axes[0].lines[0]
    steps = [1, 3, 4]  # 0 is pure noise, 2 was not recorded, 5 is the finished image
    np.testing.assert_allclose(line.get_xdata(), [-2 * np.log(SIGMAS[step]) for step in steps])
    expected = [
        np.mean([kendalltau(tensor.looks[p, :, step], tensor.final[p]).statistic for p in range(5)]) for step in steps
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)


def test_tau_is_drawn_at_the_calls_where_levels_are_not_known() -> None:
    line = tau_by_noise({"a": made()}).axes[0].lines[0]
    assert list(line.get_xdata()) == [1, 2, 3, 4, 5]


def test_top_select_is_drawn_in_per_cent_and_chance_by_brute_force() -> None:
    tensor = made(seed=3)
    figure = top_select_curves({"a": tensor}, steps=(1, 3))
    upper, lower = figure.axes[0], figure.axes[2]
    ours, chance = upper.lines[0].get_ydata(), upper.lines[1].get_ydata()
    for at, fraction in enumerate(FRACTIONS):
        count = top_count(fraction, 8)
        kept = np.argsort(-tensor.looks[:, :, 1], axis=1)[:, :count]
        hits = [tensor.final[p].argmax() in kept[p] for p in range(5)]
        assert ours[at] == pytest.approx(100 * np.mean(hits))
        assert chance[at] == pytest.approx(100 * count / 8)
    assert lower.lines[1].get_ydata()[-1] == pytest.approx(0)
    assert lower.get_ylabel() == "final reward lost"


def test_a_step_that_was_not_recorded_is_refused() -> None:
    with pytest.raises(InputError, match="Step 2 was not recorded"):
        top_select_curves({"a": made(missing=[2])}, steps=(2,))


def test_rewards_of_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="same prompts"):
        tau_by_noise({"a": made(), "b": made().select([0, 1])})
    with pytest.raises(InputError, match="no reward"):
        tau_by_noise({})


def test_a_reward_without_a_tau_and_more_rewards_than_colours_are_refused() -> None:
    tensor = made()
    constant = RewardTensor(np.ones_like(tensor.looks), tensor.final, "constant")
    single = RewardTensor(tensor.looks[:, :1], tensor.final[:, :1], "single")
    for name, tensors in {"constant": {"a": tensor, "constant": constant}, "single": {"single": single}}.items():
        with pytest.raises(InputError, match=f"{name!r} has no Kendall's tau"):
            tau_by_noise(tensors)
    six = {f"reward {number}": tensor for number in range(6)}
    for draw in (tau_by_noise, top_select_curves):
        with pytest.raises(InputError, match="at most 5 rewards apart, got 6"):
            draw(six)
    assert len(tau_by_noise(dict(list(six.items())[:5])).axes[0].lines) == 6  # and chance


def test_budget_figure_draws_the_mean_curves_and_names_the_gain() -> None:
    tensor = made(seed=1)
    budgets = (200.0, 300.0, 400.0)
    curve = budget_curves(tensor, PruningSchedule.parse("2:0.5"), budgets, resamples=5)[0]
    with pytest.raises(InputError, match="at most 5 searches apart, got 6"):
        budget_figure({"panel": {str(number): curve for number in range(6)}})
    upper, lower = budget_figure({"panel": {"pruned": curve}}, finished=100.0).axes
    np.testing.assert_allclose(upper.lines[1].get_xdata(), [2, 3, 4])
    np.testing.assert_allclose(upper.lines[1].get_ydata(), curve.values.mean(axis=0))
    np.testing.assert_allclose(upper.lines[0].get_ydata(), curve.best_of_n.mean(axis=0))
    np.testing.assert_allclose(lower.lines[1].get_ydata(), (curve.values - curve.best_of_n).mean(axis=0))
    assert curve.utilisation is not None
    assert any(f"gain {curve.utilisation.gain:+.0f} %" in text.get_text() for text in upper.texts)


def test_schedule_figure_draws_the_candidates_of_each_stage() -> None:
    with pytest.raises(InputError, match="at most 5 schedules apart, got 6"):
        schedule_figure({str(number): (PruningSchedule(), 4) for number in range(6)}, 6)
    figure = schedule_figure({"best-of-N": (PruningSchedule(), 4), "p": (PruningSchedule.parse("1:0.5,3:0.5"), 8)}, 6)
    values = [list(patch.get_data().values) for patch in figure.axes[0].patches]
    assert values == [[4], [8, 4, 2]]
    assert list(figure.axes[0].patches[1].get_data().edges) == [0, 2, 4, 6]


def test_labels_at_the_ends_do_not_overlap() -> None:
    axes = tau_by_noise({"a": made()}).axes[0]
    before = len(axes.texts)
    label_ends(axes, [(1, 0.5, "one\ntwo", "k"), (1, 0.5, "three", "k"), (1, 0.5, "four", "k")], gap=0.1)
    heights = sorted(text.xy[1] for text in axes.texts[before:])
    assert np.diff(heights).min() >= 0.1 - 1e-9
    assert heights[-1] <= 1
