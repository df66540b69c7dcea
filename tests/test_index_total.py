"""The index rule under one budget for all prompts: never more than the total, spent where it is worth most."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_index_rule import CALLS, LOOKS, PRICES, chains, true_model

from diffkit.errors import InputError
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.replay import replay
from ttsnap.evaluation.simulate import simulate
from ttsnap.fitting.index_check import HeldOut, book_differences, fit_guarded
from ttsnap.fitting.index_fit import fit_index, replay_index, replay_total
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.index_total import SharedBudget
from ttsnap.schedules.pruning_schedule import PruningSchedule


@pytest.fixture(scope="module")
def book() -> IndexBook:
    return fit_index(chains(40, 60, seed=7, across=1.0), PRICES, [20.0, 50.0], steps=LOOKS)


def test_the_total_is_never_exceeded_and_nearly_used_up(book: IndexBook) -> None:
    """Also at prices that would overrun it many times, or save most of it."""
    unseen = chains(20, 60, seed=8, across=1.0)
    for budget in (1.1, 2.0, 5.0):
        for factor in (0.02, 1.0, 30.0):
            rule = book.at(budget)
            run = replay_total(replace(rule, price=factor * rule.price, _table=rule.table), unseen, budget, resamples=3)
            share = run.spent.sum(axis=0) / (20 * budget)
            assert share.max() <= 1 + 1e-6
            assert share.min() > 0.97
            assert run.spent.max() <= book.cap * budget * (1 + 1e-6)
            assert np.isfinite(run.values).all()


def test_sharing_beats_a_budget_for_each_prompt_and_best_of_n(book: IndexBook) -> None:
    unseen = chains(60, 60, seed=9, across=1.0)
    shared = replay_total(book.at(4.0), unseen, 4.0, resamples=4).values.mean()
    each = replay_index(book.at(4.0, hard=True), unseen, resamples=4).values.mean()
    assert shared > each + 0.02 > expected_best_of_n(unseen.final, 4).mean() + 0.02


def test_one_prompt_has_the_budget_to_itself_and_groups_do_not_mix(book: IndexBook) -> None:
    tensor = chains(6, 60, seed=10, across=1.0)
    whole = replay_total(book.at(3.0), tensor, 3.0, resamples=3, seed=1)
    assert (replay_total(book.at(3.0), tensor, 3.0, resamples=1, seed=1).values[:, 0] == whole.values[:, 0]).all()
    assert replay_total(book.at(3.0), tensor.select([2]), 3.0, resamples=2).spent.max() <= 3.0 * (1 + 1e-6)


def test_failed_scores_are_paid_for_within_the_total(book: IndexBook) -> None:
    tensor = chains(8, 40, seed=11, across=1.0)
    looks, final = tensor.looks.copy(), tensor.final.copy()
    looks[:, ::2, LOOKS[0]], final[:, ::3] = np.nan, np.nan
    run = replay_total(book.at(3.0), RewardTensor(looks, final), 3.0, resamples=5)
    assert run.spent.sum(axis=0).max() <= 24 * (1 + 1e-6)
    nothing = replay_total(book.at(3.0), RewardTensor(looks, np.full_like(final, np.nan)), 3.0, resamples=2)
    assert np.isnan(nothing.values).all()
    assert nothing.spent.sum(axis=0).max() <= 24 * (1 + 1e-6)


def test_the_first_images_of_all_prompts_are_set_aside() -> None:
    """A total of just one finished candidate for each prompt finishes exactly one, whatever the price."""
    model = true_model()
    rule = IndexRule(model, model.costs(PRICES), 1e-6, 5.0)
    run = replay_total(rule, chains(9, 20, seed=12), 1.0, resamples=2)
    assert run.spent == pytest.approx(1.0)
    with pytest.raises(InputError, match="does not pay for one of each"):
        SharedBudget(rule, 8.9, np.zeros(9, dtype=np.int64))


def test_the_better_of_rule_and_schedule_is_kept_and_stored(tmp_path: Path) -> None:
    tensor = chains(24, 40, seed=13, across=0.5)
    fitted, held_out = fit_guarded(tensor, PRICES, [20.0, 40.0], folds=2, tries=5, resamples=3)
    assert held_out.index.shape == held_out.schedule.shape == (24, 2)
    assert np.isfinite(held_out.index).all()
    for plan, kept in zip(fitted.fallbacks, held_out.kept(), strict=True):
        assert (plan is None) == (kept == "index")
    made_up = HeldOut(np.array([[1.0, 0.5, -1.0]]), np.array([[0.5, 1.0, -2.0]]), np.ones((1, 3)))
    assert made_up.kept() == ["index", "schedule", "best-of-n"]
    early, plain = PruningSchedule.parse("3:0.25"), PruningSchedule()
    stored = replace(fitted, fallbacks=(early, None))
    (tmp_path / "index.json").write_text(stored.to_json())
    again = IndexBook.from_json(tmp_path / "index.json")
    assert again.fallbacks == (early, None)
    assert [again.fallback(amount) for amount in (1.5, 2.0, 2.7, 3.0, 9.0)] == [early, early, early, None, None]
    both = replace(fitted, fallbacks=(plain, early))
    assert IndexBook.from_json(_written(tmp_path, both)).fallbacks == (plain, early)


def _written(folder: Path, book: IndexBook) -> Path:
    (folder / "again.json").write_text(book.to_json())
    return folder / "again.json"


def test_a_fallback_is_replayed_as_a_schedule_is(book: IndexBook) -> None:
    tensor, plan = chains(10, 40, seed=14), PruningSchedule.parse("3:0.25")
    with_plan = replace(book, fallbacks=(plan, None))
    result = simulate(tensor, with_plan, "2x,5x", prices=PRICES, resamples=3)
    own = simulate(tensor, plan, "2x", prices=PRICES, resamples=3).to_dict()[0]["budgets"][0]["schedule"]
    first, second = (point["index"] for point in result.to_dict()[0]["budgets"])
    assert (first["rule"], second["rule"]) == ("3:0.25", "index")
    assert (first["reward"], first["spent"]) == pytest.approx((own["reward"], own["spent"]))
    differences, spent = book_differences(with_plan, tensor, PRICES, [2.0 * CALLS, 5.0 * CALLS])
    n = int(own["candidates"])
    rewards = replay(tensor, plan, n, resamples=24, stream=1).values.mean(axis=1)
    assert differences[:, 0] == pytest.approx(rewards - expected_best_of_n(tensor.final, 2))
    assert (spent.mean(axis=0) <= [2.0, 5.0 * (1 + 1e-6)]).all()


def test_a_file_of_the_first_schema_opens(book: IndexBook, tmp_path: Path) -> None:
    content = book.to_json().replace('"schema": 2', '"schema": 1').replace(',\n "fallbacks": []', "")
    assert "fallbacks" not in content
    (tmp_path / "old.json").write_text(content)
    assert IndexBook.from_json(tmp_path / "old.json").fallbacks == ()
    (tmp_path / "new.json").write_text(book.to_json().replace('"schema": 2', '"schema": 3'))
    with pytest.raises(InputError, match="schema 3"):
        IndexBook.from_json(tmp_path / "new.json")
