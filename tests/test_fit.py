"""Fitted schedules: found where there is something to find, refused where there is not, read back as written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.cli.app import app
from ttsnap.cli.fit import fit as command
from ttsnap.evaluation.accounting import allot
from ttsnap.evaluation.budget_curves import finished_cost
from ttsnap.fitting.fit_schedule import fit
from ttsnap.fitting.index_check import best_of_n_at, fit_guarded
from ttsnap.fitting.local_search import BEST_OF_N, Bench, search_budget
from ttsnap.reward_tensor import RewardTensor, save_npz
from ttsnap.schedules.fitted_schedule import FittedSchedule
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule

CALLS = 8
PRICES = Prices(1.0, 0.2, 0.1)


def noise(prompts: int = 20, pool: int = 24) -> RewardTensor:
    """Looks that say nothing of the final reward."""
    rng = np.random.default_rng(0)
    return RewardTensor(rng.standard_normal((prompts, pool, CALLS)), rng.standard_normal((prompts, pool)), "noise")


def telling(prompts: int = 24, pool: int = 40) -> RewardTensor:
    """From step 2 on the looks tell the final reward; before, nothing."""
    rng = np.random.default_rng(1)
    final = rng.standard_normal((prompts, pool))
    looks = final[..., None] + 0.1 * rng.standard_normal((prompts, pool, CALLS))
    looks[:, :, :2] = rng.standard_normal((prompts, pool, 2))
    return RewardTensor(looks, final, "telling")


def quick(tensor: RewardTensor, budgets=(20.0, 40.0), **given) -> FittedSchedule:
    return fit(tensor, budgets, prices=PRICES, **{"folds": 2, "tries": 25, "resamples": 6, **given})


def test_pure_noise_gives_best_of_n():
    """Mistake 6: a schedule chosen and reported on the same prompts looks good on noise as well."""
    found = quick(noise())
    assert found.steps == found.entries == ()
    assert found.reason.startswith("best-of-N")
    assert found.resolve(CALLS, equivalent=4.0) == found.resolve(CALLS, candidates=9) == BEST_OF_N


def test_finds_the_step_that_tells():
    found = quick(telling())
    assert found.low is not None
    assert found.low > 50
    assert [entry.schedule.steps[0] for entry in found.entries] == [2, 2]
    assert all(at.reward > at.best_of_n and at.low > 0 for at in found.expected)


def test_one_budget_and_the_same_seed_twice():
    one, again, other = (quick(telling(), (30.0,), seed=seed) for seed in (3, 3, 4))
    assert one == again
    assert one.to_json() == again.to_json()
    assert one.gain != other.gain
    assert one.low < one.gain < one.high


def test_what_it_expects_is_measured_on_prompts_held_out():
    """Mistake 6 again: what is expected must not be the reward on the prompts fitted on. Each prompt's looks tell its
    final reward by a step of its own; no schedule carries over, though one fits the prompts at hand by chance."""
    tensor = telling()
    looks = np.random.default_rng(2).standard_normal(tensor.looks.shape)
    looks[:12, :, 2] = tensor.final[:12]
    looks[12:, :, 2] = -tensor.final[12:]
    found = quick(RewardTensor(looks, tensor.final))
    assert found.entries == ()


def test_budget_is_never_overrun_and_shares_mean_what_was_counted():
    """Mistakes 1 and 2: cost in whole calls of whole survivors, s + 1 calls for a score at index s."""
    tensor = telling()
    bench = Bench.of(tensor, PRICES, resamples=4, seed=0)
    rng = np.random.default_rng(0)
    for budget in (9.0, 17.0, 33.3, 70.0):
        schedule = search_budget(bench, budget, rng, tries=40)
        sizes = bench.counts(schedule, budget)
        bounds = [0, *(step + 1 for step in schedule.steps), CALLS]
        calls = sum(
            size * (stop - start) for size, (start, stop) in zip(sizes, itertools.pairwise(bounds), strict=True)
        )
        assert calls * 1.0 + sum(sizes) * 0.3 <= budget * (1 + 1e-9)
        assert sizes[1:] == schedule.survivors(sizes[0])


def test_a_look_that_drops_nobody_is_left_out():
    """Such looks cost what further candidates could have cost; small counts round many shares to them."""
    tensor = telling(prompts=12)
    bench = Bench.of(tensor, PRICES, resamples=6, seed=0)
    idle = PruningSchedule((2, 4, 5), (0.15, 0.98, 0.97))
    assert bench.counts(idle, 40.0)[1:] == [bench.counts(idle, 40.0)[1]] * 3
    found = search_budget(bench, 40.0, np.random.default_rng(0), tries=0, starts=[idle])
    assert bench.mean(idle, 40.0) > max(bench.mean(one, 40.0) for one in (BEST_OF_N, PruningSchedule((1,), (0.15,))))
    assert all(after < before for before, after in itertools.pairwise(bench.counts(found, 40.0)))


def test_search_reaches_the_best_of_all_single_cuts():
    """Against brute force over every step and number of survivors."""
    tensor, budget = telling(prompts=10), 30.0
    bench = Bench.of(tensor, PRICES, resamples=6, seed=0)
    brute = max(
        bench.mean(PruningSchedule((step,), (round(share / 40, 3),)), budget)
        for step in range(CALLS - 1)
        for share in range(1, 41)
    )
    found = search_budget(bench, budget, np.random.default_rng(0), cuts=1, tries=150)
    assert len(found.steps) <= 1
    assert bench.mean(found, budget) >= brute - 0.02


def test_only_recorded_steps_and_nan_never_wins():
    tensor = telling()
    looks, final = tensor.looks.copy(), tensor.final.copy()
    looks[:, :, [2, 3, 5]] = np.nan
    looks[:, 0, 4] = np.nan
    final[:, 1] = np.nan
    found = quick(RewardTensor(looks, final))
    assert {step for entry in found.entries for step in entry.schedule.steps} <= {0, 1, 4, 6}
    assert all(np.isfinite(at.reward) for at in found.expected)


def test_budgets_that_the_recorded_candidates_cannot_fill_are_left_out(capsys, monkeypatch):
    """Best-of-N takes all of them there, so that nothing is compared at equal cost."""
    monkeypatch.delenv("DIFFKIT_QUIET")
    tensor = telling(pool=8)
    few, all_of_them = 4 * finished_cost(PRICES, CALLS), 8 * finished_cost(PRICES, CALLS)
    fitted = quick(tensor, (few, all_of_them, 2 * all_of_them, 3 * all_of_them))
    assert [row.budget for row in fitted.expected] == [few, all_of_them]
    assert fitted == quick(tensor, (few, all_of_them))
    assert "Budgets from 16x on are left out: best-of-N takes all 8 recorded" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"at every budget, from 16x on; give budgets up to 8x"):
        quick(tensor, (2 * all_of_them,))
    book, held_out = fit_guarded(tensor, PRICES, [few, 2 * all_of_them], folds=2, tries=3, resamples=2)
    assert len(book.entries) == held_out.index.shape[1] == 1


def test_file_is_read_back_and_serves_budgets_candidates_and_step_counts(tmp_path):
    found = quick(telling(), (20.0, 60.0))
    (tmp_path / "s.json").write_text(found.to_json())
    again = load_schedule(tmp_path / "s.json")
    assert again == found
    assert again.to_json() == found.to_json()
    small, large = found.entries
    one = allot(8.3, BEST_OF_N, CALLS, PRICES).spent
    assert small.equivalent == pytest.approx(20.0 / one)
    assert again.resolve(CALLS, equivalent=2.5) == small.schedule == again.at_budget(25.0)
    assert again.resolve(CALLS, equivalent=99.0) == large.schedule
    assert again.resolve(CALLS, candidates=small.candidates) == small.schedule
    twice = again.resolve(2 * CALLS, equivalent=2.5)
    assert twice.steps == tuple(2 * step + 1 for step in small.schedule.steps)
    again.resolve(2, candidates=5).validate(2)


def test_stretching_merges_looks_and_drops_the_last():
    schedule = FittedSchedule((0, 1, 6), (0.5, 0.4, 0.5), calls=8)
    halved = schedule.resolve(4)
    assert halved.steps == (0,)  # calls 1 and 2 of 8 are call 1 of 4; call 7 would be the last one
    assert halved.keep == pytest.approx((0.2,))
    halved.validate(4)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="must be positive and rise"):
        quick(noise(), (30.0, 30.0))
    with pytest.raises(InputError, match="too small for one candidate"):
        quick(noise(), (5.0,))
    with pytest.raises(InputError, match="cannot be held out"):
        quick(noise(prompts=1))
    newer = json.loads(quick(telling()).to_json()) | {"schema": 2}
    (tmp_path / "s.json").write_text(json.dumps(newer))
    with pytest.raises(InputError, match="newer than 1"):
        load_schedule(tmp_path / "s.json")
    with pytest.raises(InputError, match="Unknown schedule 'nowhere'"):
        load_schedule("nowhere")


def test_command_writes_the_file(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_QUIET", "1")
    save_npz(tmp_path / "t.npz", telling(prompts=10))
    arguments = ["fit", str(tmp_path / "t.npz"), "--budgets", "2x:4x:2", "--folds", "2", "--resamples", "4",
                 "--format", "json", "--out", str(tmp_path / "s.json")]  # fmt: skip
    missing = CliRunner().invoke(app, arguments)
    assert isinstance(missing.exception, InputError)
    assert "--call-cost" in str(missing.exception)
    done = CliRunner().invoke(app, [*arguments, "--call-cost", "1", "--verify-cost", "0.3"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown == json.loads((tmp_path / "s.json").read_text())
    assert [round(entry["equivalent"], 6) for entry in shown["entries"]] == [2, 4]
    assert isinstance(load_schedule(tmp_path / "s.json"), FittedSchedule)
    assert command.__doc__ is not None


def test_command_fits_an_index_rule(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_QUIET", "1")
    save_npz(tmp_path / "t.npz", telling(prompts=12))
    arguments = ["fit", str(tmp_path / "t.npz"), "--rule", "index", "--budget", "2x,4x", "--folds", "2", "--call-cost",
                 "1", "--verify-cost", "0.3", "--format", "json", "--out", str(tmp_path / "i.json")]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    book = IndexBook.from_json(tmp_path / "i.json")
    assert [one["equivalent"] for one in shown] == pytest.approx([2, 4])
    assert [(one["equivalent"], one["price"]) for one in shown] == list(book.entries)
    assert all(one["low"] > 0 for one in shown)  # looks that tell the final reward make it better than best-of-N
    better = ["index" if one["difference"] > one["schedule"]["difference"] else "schedule" for one in shown]
    assert [one["kept"] for one in shown] == better
    assert [plan is None for plan in book.fallbacks] == [kept == "index" for kept in better]


def test_best_of_n_between_whole_numbers():
    final = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 3.0]])
    one, two = expected_best_of_n(final, 1), expected_best_of_n(final, 2)
    assert best_of_n_at(final, 1.25) == pytest.approx(0.75 * one + 0.25 * two)
    assert best_of_n_at(final, 9.0) == pytest.approx([4.0, 3.0])


def test_at_a_budget_at_which_pruning_lost_on_held_out_prompts_it_is_best_of_n():
    """Rewards with a ceiling, and looks that say little: the smallest budget buys too few candidates."""
    rng = np.random.default_rng(9)
    final = np.minimum(rng.standard_normal((24, 60)), 0.6)
    looks = final[..., None] + 1.5 * rng.standard_normal((24, 60, CALLS))
    fitted = quick(RewardTensor(looks, final, "ceiling"), (20.0, 40.0, 80.0, 120.0))
    assert fitted.expected[0].reward < fitted.expected[0].best_of_n - 0.005
    assert fitted.entries[0].schedule == BEST_OF_N
    assert fitted.entries[1].schedule.steps
