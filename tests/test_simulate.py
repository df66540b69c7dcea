"""Replay on recorded rewards: against a search written out in plain Python, and against the published figures."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.rewards.combine import mean_ranks, pareto, pareto_fronts, rank_sum, z_sum
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, allot, fractional_cost
from ttsnap.evaluation.budget_curves import PUBLISHED_BUDGETS, budget_curves, parse_budgets, read_budgets
from ttsnap.evaluation.replay import draw_orders, replay
from ttsnap.evaluation.simulate import simulate
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.selection import ranking
from ttsnap.trajectories.read import load_tensor

PUBLISHED = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")
# Gains in % of shared/data/README.md: published accounting and right charges, noise-aware and plain rewards.
README = {
    "flux_imagereward": (30.6, 8.6, 23.4, 0.7), "flux_pickscore": (38.4, -2.2, 29.4, -12.1),
    "flux_hpsv2": (27.5, 1.6, 17.8, -9.1), "sdxl_imagereward": (15.4, 7.2, 9.0, 0.1),
    "sdxl_pickscore": (7.9, -10.6, 0.5, -18.9), "sdxl_hpsv2": (-5.1, -18.7, -13.4, -27.8),
}  # fmt: skip


def tensor(shape=(3, 7, 5), seed=0, *, ties=False, missing=0.0, name="r"):
    rng = np.random.default_rng(seed)
    draw = (lambda size: rng.integers(0, 3, size).astype(float)) if ties else (lambda size: rng.normal(size=size))
    looks, final = draw(shape), draw(shape[:2])
    looks[rng.random(shape) < missing] = np.nan
    final[rng.random(shape[:2]) < missing] = np.nan
    return RewardTensor(looks, final, name)


def by_hand(one: RewardTensor, p: int, drawn, steps, kept):
    """One search as the pipeline does it, by the pipeline's own ranking: a candidate whose score is NaN is out."""
    left = sorted(int(i) for i in drawn)
    stages = [list(left)]
    for step, k in zip(steps, kept, strict=True):
        best = ranking([one.looks[p, i, step] for i in left])[:k]
        left = [left[position] for position in sorted(best)]
        stages.append(list(left))
    last = ranking([one.final[p, i] for i in left])
    return (left[last[0]] if last else -1), stages


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 7), ties=st.booleans(), missing=st.sampled_from([0.0, 0.2, 0.7]),
    shares=st.lists(st.sampled_from([0.2, 0.4, 0.5, 0.8, 1.0]), max_size=3),
)  # fmt: skip
def test_mistake_3_winners_are_indices_into_the_pool_whatever_the_looks(seed, n, ties, missing, shares) -> None:
    one = tensor(seed=seed, ties=ties, missing=missing)
    schedule = PruningSchedule(tuple(range(len(shares))), tuple(shares))
    if not set(schedule.steps) <= set(one.recorded):
        return
    orders = draw_orders(range(3), 7, 4, seed=seed)
    found = replay(one, schedule, n, orders=orders)
    kept = schedule.survivors(n)
    for p, r in itertools.product(range(3), range(4)):
        winner, stages = by_hand(one, p, orders[p, r, :n], schedule.steps, kept)
        assert found.winners[p, r] == winner
        np.testing.assert_equal(found.values[p, r], one.final[p, winner] if winner >= 0 else math.nan)
        if not missing:
            assert [stage[p, r].tolist() for stage in found.stages] == stages


def test_mistake_4_ties_go_to_the_lower_index() -> None:
    flat = RewardTensor(np.zeros((1, 6, 3)), np.zeros((1, 6)))
    order = np.array([[[5, 3, 4, 1, 0, 2]]])
    found = replay(flat, PruningSchedule((0, 1), (0.5, 0.5)), 4, orders=order)  # 5, 3, 4 and 1 were drawn
    assert [stage.tolist() for stage in found.stages] == [[[[1, 3, 4, 5]]], [[[1, 3]]], [[[1]]]]
    assert found.winners.tolist() == [[1]]
    several = replay([flat, flat], PruningSchedule((0, 1), (0.5, 0.5)), 4, orders=order)
    assert [stage.tolist() for stage in several.stages] == [stage.tolist() for stage in found.stages]


def test_mistake_5_prompts_have_subsets_of_their_own_from_a_seed() -> None:
    orders = draw_orders(range(6), 40, 5, seed=3)
    assert (np.sort(orders) == np.arange(40)).all()
    assert all(not np.array_equal(one, other) for one, other in itertools.combinations(orders, 2))
    assert all(not np.array_equal(one, other) for one, other in itertools.combinations(orders[0], 2))
    np.testing.assert_array_equal(draw_orders([4, 1], 40, 3, seed=3), orders[[4, 1], :3])  # chunks change nothing
    assert not np.array_equal(draw_orders(range(6), 40, 5, seed=4), orders)
    assert not np.array_equal(draw_orders(range(6), 40, 5, seed=3, stream=1), orders)
    every = np.concatenate([draw_orders([p], 5, 200)[0, :, 0] for p in range(20)])
    assert (abs(np.bincount(every) / len(every) - 0.2) < 0.03).all()  # the first one is uniform


def test_chunks_do_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    one = tensor((9, 12, 5), ties=True)
    whole = replay(one, PruningSchedule((1, 2), (0.5, 0.5)), 8, resamples=6, seed=2)
    monkeypatch.setattr("ttsnap.evaluation.replay.CHUNK", 100)
    parts = replay(one, PruningSchedule((1, 2), (0.5, 0.5)), 8, resamples=6, seed=2)
    np.testing.assert_array_equal(whole.winners, parts.winners)
    np.testing.assert_array_equal(whole.values, parts.values)


def test_nan_never_wins_and_a_prompt_without_scores_has_no_winner() -> None:
    looks, final = np.zeros((2, 4, 3)), np.array([[np.nan, -9.0, np.nan, np.nan], [np.nan] * 4])
    for group in (RewardTensor(looks, final), [RewardTensor(looks, final), RewardTensor(looks, np.zeros((2, 4)))]):
        found = replay(group, PruningSchedule((1,), (1.0,)), 4, resamples=3)
        assert found.winners.tolist() == [[1] * 3, [-1] * 3]
        assert np.isnan(found.values[1]).all()


def test_what_cannot_be_replayed_is_refused() -> None:
    one = tensor()
    with pytest.raises(InputError, match="8 candidates from a pool of 7"):
        replay(one, PruningSchedule(), 8)
    with pytest.raises(InputError, match="before its last"):
        replay(one, PruningSchedule((4,), (0.5,)), 3)
    looks = one.looks.copy()
    looks[:, :, 1] = np.nan
    with pytest.raises(InputError, match="step 1, but r was recorded at 0, 2, 3, 4 only"):
        replay(RewardTensor(looks, one.final, "r"), PruningSchedule((1,), (0.5,)), 3)
    with pytest.raises(InputError, match="shapes differ"):
        replay([one, tensor((3, 6, 5))], PruningSchedule(), 3)


def test_mistake_1_a_score_at_index_s_costs_s_plus_1_calls() -> None:
    assert fractional_cost(PruningSchedule(), 20, PUBLISHED_PRICES, free_call=True) == pytest.approx(189.3)
    assert fractional_cost(PruningSchedule(), 20, PUBLISHED_PRICES) == pytest.approx(199.2)
    assert fractional_cost(PUBLISHED, 20, PUBLISHED_PRICES, free_call=True) == pytest.approx(51.864)
    assert fractional_cost(PUBLISHED, 20, PUBLISHED_PRICES) == pytest.approx(61.764)
    assert allot(2000, PUBLISHED, 20, accounting="published").candidates == 38
    assert allot(2000, PUBLISHED, 20, accounting="fractional").candidates == 32
    assert allot(2000, PUBLISHED, 20, accounting="published").unspent < -300  # the 19 % overrun, counted exactly
    for accounting in ("exact", "fractional", "published"):
        assert allot(1992, PruningSchedule(), 20, accounting=accounting).candidates == 10


@settings(max_examples=60)
@given(
    budget=st.floats(250, 9000), looks=st.sets(st.integers(0, 18), max_size=4), verify=st.floats(0, 20),
    shares=st.lists(st.sampled_from([0.05, 0.33, 0.5, 0.9]), min_size=4, max_size=4), preview=st.booleans(),
)  # fmt: skip
def test_mistake_2_the_exact_budget_is_never_overrun_and_one_more_would_overrun_it(budget, looks, verify, shares, preview) -> None:  # fmt: skip  # noqa: E501
    schedule = PruningSchedule(tuple(sorted(looks)), tuple(shares[: len(looks)]))
    prices = Prices(9.9, 0.7, verify, preview=0.1 if preview else None)
    bought = allot(budget, schedule, 20, prices)
    spent = schedule.cost(bought.candidates, 20, preview=preview).at(prices)
    assert bought.spent == pytest.approx(spent)
    assert bought.unspent == pytest.approx(budget - spent)
    assert bought.unspent >= -1e-6
    assert schedule.cost(bought.candidates + 1, 20, preview=preview).at(prices) > budget
    assert list(bought.survivors) == schedule.survivors(bought.candidates)


def test_a_budget_beyond_the_pool_is_capped_and_says_so() -> None:
    bought = allot(4000, PUBLISHED, 20, pool=10)
    assert (bought.candidates, bought.capped) == (10, True)
    assert bought.unspent == pytest.approx(4000 - PUBLISHED.cost(10, 20).at(PUBLISHED_PRICES))
    with pytest.raises(InputError, match="too small"):
        allot(100, PUBLISHED, 20)
    with pytest.raises(InputError, match="not known"):
        allot(100, PUBLISHED, 20, Prices(None, 1, 1))


def shared(folder, key, plain):
    path = folder / "reward_tensors_prompts000-099.npz"
    if not path.is_file():
        pytest.skip(f"no shared rewards at {path}")
    return load_tensor(path, key, plain=plain)


@pytest.mark.parametrize("model", ["flux", "sdxl"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_published_schedule_gains_what_the_shared_table_says(shared_data, model, plain) -> None:
    """Its column "exact ledger" charges right but counts fractions of survivors; with whole ones and no overrun every
    gain is 2 to 5 points lower."""
    group = [shared(shared_data, key, plain) for key in README if key.startswith(model)]
    curves = {
        accounting: budget_curves(group, PUBLISHED, accounting=accounting, resamples=40)
        for accounting in ("published", "fractional", "exact")
    }
    for k, one in enumerate(group):
        gains = {accounting: found[k].utilisation.gain for accounting, found in curves.items()}
        # the table's spread is 0.1 to 0.4 over seeds with 100 resamplings: two of that, scaled to 40
        assert gains["published"] == pytest.approx(README[one.name][plain], abs=0.9)
        assert gains["fractional"] == pytest.approx(README[one.name][2 + plain], abs=0.9)
        assert -5.5 < gains["exact"] - gains["fractional"] < -1.5
    exact = curves["exact"][0]
    assert all(0 <= bought.unspent < 200 for bought in (*exact.allotments, *exact.best_allotments))
    assert min(bought.unspent for bought in curves["fractional"][0].allotments) < 0


def test_a_schedule_for_each_budget_and_joint_rewards() -> None:
    group = [tensor((5, 30, 20), seed=1, name="a"), tensor((5, 30, 20), seed=2, name="b")]
    asked = []

    def choose(budget: float) -> PruningSchedule:
        asked.append(budget)
        return PruningSchedule() if budget < 1000 else PUBLISHED

    curves = budget_curves(group, choose, (400, 800, 1600), resamples=20)
    assert asked == [400, 800, 1600]
    assert [one.name for one in curves] == ["a", "b"]
    assert [bought.candidates for bought in curves[0].allotments[:2]] == [2, 4]
    assert curves[0].survival[2].shape == (4,)
    assert curves[0].survival[2][0] == 1
    known = [RewardTensor(np.repeat(one.final[..., None], 20, axis=2), one.final) for one in group]
    alone = budget_curves(known, PUBLISHED, (400, 800), resamples=20)
    for rule in ("rank", "zscore", "pareto"):
        joint = budget_curves(known, PUBLISHED, (400, 800), resamples=20, combine=rule)
        assert joint[0].values.mean() < alone[0].values.mean()  # two rewards share what one had to itself
        assert joint[0].values.mean() > group[0].final.mean()
    with pytest.raises(InputError, match="must rise"):
        budget_curves(group, PUBLISHED, (800, 400))


def test_budgets_that_are_capped_do_not_count_for_the_gain() -> None:
    final = tensor((4, 12, 20)).final
    one = RewardTensor(np.repeat(final[..., None], 20, axis=2), final)
    early = budget_curves(one, PUBLISHED, (400, 600), resamples=20)[0]
    late = budget_curves(one, PUBLISHED, (400, 600, 4000, 8000), resamples=20)[0]
    assert [bought.capped for bought in late.allotments] == [False, False, True, True]
    assert late.utilisation == early.utilisation
    assert budget_curves(one, PUBLISHED, (400, 4000), resamples=20)[0].utilisation is None


def test_best_of_n_by_the_schedule_is_best_of_n_exactly_in_expectation() -> None:
    one = tensor((4, 30, 20))
    curve = budget_curves(one, PruningSchedule(), (400, 2000), resamples=2000)[0]
    np.testing.assert_allclose(curve.values, curve.best_of_n, atol=0.06)
    assert curve.allotments == curve.best_allotments


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_against_counting(ties) -> None:
    values = tensor((4, 9, 3), seed=5, ties=ties).looks
    found = mean_ranks(values)
    for p, i, k in np.ndindex(values.shape):
        row = values[p, i]
        assert found[p, i, k] == (row < row[k]).sum() + ((row == row[k]).sum() + 1) / 2


def test_utilities_of_several_rewards_by_hand() -> None:
    scores = np.array([[3.0, 10], [2, 30], [1, 20], [0, 0], [np.nan, 99]])
    assert rank_sum(scores).tolist() == [5 + 3, 4 + 5, 3 + 4, 2 + 2, -math.inf]
    z = (scores[:4] - scores[:4].mean(axis=0)) / scores[:4].std(axis=0)
    np.testing.assert_allclose(z_sum(scores)[:4], z.sum(axis=1))
    assert pareto_fronts(scores).tolist() == [0, 0, 1, 2, -1]
    assert pareto(scores).argsort().tolist() == [4, 3, 2, 0, 1]  # within the front the rank sum decides
    assert z_sum(np.full((3, 2), 0.1)).tolist() == [0, 0, 0]
    assert pareto_fronts(np.ones((3, 2))).tolist() == [0, 0, 0]  # equal candidates do not dominate each other


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_fronts_against_the_definition(seed, ties) -> None:
    scores = tensor((1, 12, 3), seed=seed, ties=ties).looks[0]

    def dominates(i, j):
        return (scores[i] >= scores[j]).all() and (scores[i] > scores[j]).any()

    fronts = pareto_fronts(scores)
    for i in range(12):
        above = [fronts[j] for j in range(12) if dominates(j, i)]
        assert fronts[i] == (max(above) + 1 if above else 0)


def test_one_reward_twice_chooses_as_one() -> None:
    one = tensor((4, 20, 20))
    orders = draw_orders(range(4), 20, 10)
    alone = replay(one, PUBLISHED, 15, orders=orders)
    for rule in ("rank", "zscore", "pareto"):
        twice = replay([one, one], PUBLISHED, 15, orders=orders, combine=rule)
        np.testing.assert_array_equal(twice.winners, alone.winners)
        assert twice.values.shape == (4, 10, 2)


def test_budgets_are_read_in_two_forms() -> None:
    assert parse_budgets("400:4000:200") == PUBLISHED_BUDGETS
    assert parse_budgets("400, 800,1000.5") == (400, 800, 1000.5)
    assert read_budgets("2x, 4x", Prices(1.0, 1.0, 1.0), 8) == [20.0, 40.0]
    with pytest.raises(InputError, match="candidates .2x. and costs .400. in one list"):
        read_budgets("2x,400", Prices(1.0, 1.0, 1.0), 8)
    for bad in ("", "a", "4:2:1", "1:2", "1:2:0", "0,1", "2,1", "1,1", "nan", "1:inf:1"):
        with pytest.raises(InputError, match="budgets"):
            parse_budgets(bad)


def test_a_prompt_without_a_winner_leaves_the_intervals_of_the_others() -> None:
    whole = tensor((5, 6, 4))
    final = np.where(np.arange(5)[:, None] == 0, np.nan, whole.final)
    part = simulate(RewardTensor(whole.looks, final), "1:0.5", "2x:4x:2x", prices=Prices(1.0, 1.0, 1.0), resamples=3)
    (curve,) = part.curves
    difference = (curve.values - curve.best_of_n)[1:]
    np.testing.assert_allclose(curve.difference_error, difference.std(axis=0, ddof=1) / 2)


def test_one_recorded_candidate_has_budgets_by_default() -> None:
    result = simulate(tensor((3, 1, 4)), "", prices=Prices(1.0, 1.0, 1.0), resamples=2)
    assert len(result.curves[0].budgets) == 1
