"""The index rule: against exhaustive dynamic programming, closed forms and searches on synthetic chains."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.alignment import expected_best_of_n
from ttsnap.evaluation.replay import replay
from ttsnap.fitting.index_fit import fit_index, price_for_budget, replay_index
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.schedules.score_model import ScoreModel, index_offsets

CALLS, LOOKS = 10, (1, 3, 6)
PRICES = Prices(1.0, 0.0, 0.0)


def chains(prompts: int, pool: int, *, seed: int, across: float = 0.0) -> RewardTensor:
    """Gaussian martingales: a look shows a growing part of the final reward; a prompt shifts and stretches them."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((prompts, pool, CALLS)) / np.sqrt(CALLS)
    walk = np.cumsum(steps, axis=-1)
    shift = across * rng.standard_normal((prompts, 1, 1))
    walk = shift + walk * np.exp(0.5 * across * rng.standard_normal((prompts, 1, 1)))
    wobble = across * 0.3 * rng.standard_normal((prompts, 1, CALLS))  # early scores do not tell the prompt's mean
    return RewardTensor(walk + wobble, walk[:, :, -1], "chains")


def true_model() -> ScoreModel:
    seen = np.array([*(step + 1 for step in LOOKS), CALLS]) / CALLS
    within = np.minimum(seen[:, None], seen[None])
    return ScoreModel(LOOKS, CALLS, np.zeros(4), 1e-12 * np.eye(4), within, 1e9)


def test_offset_of_one_stage_is_weitzmans():
    """With one stage the index z solves E[(x - z)+] = price * cost, Weitzman's equation, known in closed form."""
    for price in (0.05, 0.2, 0.4):
        z = index_offsets(np.array([0.0, 1.0]), np.array([1.0]), np.array([price]))[0, 0]
        assert norm.pdf(z) - z * norm.sf(z) == pytest.approx(price, abs=1e-3)


def test_offsets_fall_to_zero_and_with_the_price():
    foretold = np.array([0.0, 0.3, 0.7, 1.0])
    offsets = index_offsets(foretold, np.array([0.2, 0.3, 0.5]), np.array([0.05, 0.1, 0.2]))
    assert (np.diff(offsets[:, :-1], axis=0) < 0).all()
    assert (offsets[:, -1] == 0).all()


def test_index_is_optimal_by_exhaustive_dynamic_programming():
    """Two-stage boxes with three values a stage: the best policy of all, by recursion over every state, is worth no
    more than always opening the highest index (computed by the indifference that defines it)."""
    jumps, cost, price, boxes = (-1.0, 0.0, 1.0), (0.3, 0.5), 0.25, 3

    @cache
    def value(state: tuple[tuple[int, float], ...], best: float) -> float:
        options = [best]
        for at in range(boxes):
            after = moves(state, best, at)
            if after is not None:
                options.append(sum(value(*one) for one in after) / 3 - price * cost[state[at][0]])
        return max(options)

    def moves(state, best, at):
        stage, mean = state[at]
        if stage == 2:
            return None
        after = []
        for jump in jumps:
            changed = list(state)
            changed[at] = (stage + 1, mean + jump)
            after.append((tuple(sorted(changed)), max(best, mean + jump) if stage == 1 else best))
        return after

    def index(stage: int, mean: float) -> float:
        def worth(hand: float, stage: int, mean: float) -> float:
            if stage == 2:
                return max(hand, mean)
            return max(hand, sum(worth(hand, stage + 1, mean + jump) for jump in jumps) / 3 - price * cost[stage])

        low, high = -5.0, 5.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if worth(middle, stage, mean) > middle + 1e-12 else (low, middle)
        return low

    @cache
    def by_index(state: tuple[tuple[int, float], ...], best: float) -> float:
        indices = [index(*one) if one[0] < 2 else -np.inf for one in state]
        at = int(np.argmax(indices))
        if indices[at] <= best:
            return best
        after = moves(state, best, at)
        return sum(by_index(*one) for one in after) / 3 - price * cost[state[at][0]]

    start = (((0, 0.0),) * boxes, -1.0)
    assert by_index(*start) == pytest.approx(value(*start), abs=1e-9)
    assert value(*start) > -1.0


def test_beats_best_of_n_and_fixed_fractions_when_the_scale_is_known():
    tensor = chains(40, 150, seed=1)
    model = true_model()
    budget = 6.0
    rule = IndexRule(model, model.costs(PRICES), 0.1, 6 * budget, caution=0.0)
    found = replay_index(price_for_budget(rule, tensor, budget), tensor, resamples=10, seed=2)
    fractions = [
        PruningSchedule(steps, keep)
        for steps in itertools.combinations(LOOKS, 2)
        for keep in itertools.product((0.25, 0.4, 0.6), repeat=2)
    ]
    best_fixed = -np.inf
    for schedule in fractions:
        n = max(n for n in range(1, 60) if schedule.cost(n, CALLS).calls <= budget * CALLS)
        best_fixed = max(best_fixed, float(replay(tensor, schedule, n, resamples=10, seed=2).values.mean()))
    assert found.spent.mean() == pytest.approx(budget, rel=0.1)
    assert found.values.mean() > best_fixed + 0.02 > expected_best_of_n(tensor.final, 6).mean() + 0.02


def test_learns_the_scale_of_prompts_it_has_not_seen():
    book = fit_index(chains(60, 80, seed=3, across=1.0), PRICES, [40.0, 60.0, 90.0], steps=LOOKS)
    unseen = chains(60, 80, seed=4, across=1.0)
    found = replay_index(book.at(6.0), unseen, resamples=5, seed=5)
    whole = int(np.ceil(found.spent.mean()))
    assert found.values.mean() > expected_best_of_n(unseen.final, whole).mean()


def test_posterior_is_the_batch_gaussian_one():
    """Kalman's updates, in any order, against the joint Gaussian conditioned at once."""
    tensor = chains(30, 40, seed=6, across=1.0)
    model = ScoreModel.fit(tensor, LOOKS)
    fixed = ScoreModel(LOOKS, CALLS, model.mean, model.between, model.within, 1e12)
    rule = IndexRule(fixed, model.costs(PRICES), 0.1, 40.0)
    state = rule.begin(1)
    scores = np.concatenate([tensor.looks[0][:, list(LOOKS)], tensor.final[0][:, None]], axis=-1)
    seen = {0: 2, 1: 4, 2: 1}
    for depth in range(4):
        for candidate, most in seen.items():
            if depth < most:
                rule.observe(state, np.array([0]), np.array([candidate]), scores[[candidate], depth])
    rows = [(candidate, depth) for candidate, most in seen.items() for depth in range(most)]
    pick = np.array([depth for _, depth in rows])
    same = np.equal.outer([c for c, _ in rows], [c for c, _ in rows])
    cov = model.between[np.ix_(pick, pick)] + same * model.within[np.ix_(pick, pick)]
    residual = np.array([scores[c, d] for c, d in rows]) - model.mean[pick]
    gain = model.between[:, pick] @ np.linalg.inv(cov)
    assert state.mean[0] == pytest.approx(model.mean + gain @ residual, abs=1e-6)
    assert state.cov[0] == pytest.approx(model.between - gain @ model.between[pick], abs=1e-6)
    joint = model.to_final[4] @ scores[1] + model.to_mean[4] @ state.mean[0]
    assert joint == pytest.approx(scores[1, -1])


@pytest.mark.parametrize("hard", [False, True])
def test_no_prompt_exceeds_the_limit_and_each_finishes_one(hard):
    book = fit_index(chains(40, 60, seed=7, across=1.0), PRICES, [20.0, 50.0], steps=LOOKS)
    for budget in (1.0, 2.0, 3.7, 5.0):
        found = replay_index(book.at(budget, hard=hard), chains(20, 60, seed=8, across=1.0), resamples=3)
        assert found.spent.max() <= (budget if hard else book.cap * budget) * (1 + 1e-6)
        assert np.isfinite(found.values).all()
        if hard:
            assert found.spent.min() > budget - 1 - 1e-6  # less than a candidate is left, unless the pool is empty


def test_a_failed_score_never_wins_and_is_paid_for():
    tensor = chains(4, 30, seed=9)
    final = tensor.final.copy()
    final[np.arange(4), final.argmax(axis=1)] = np.nan
    looks = tensor.looks.copy()
    looks[:, ::3, LOOKS[0]] = np.nan
    model = true_model()
    rule = IndexRule(model, model.costs(PRICES), 0.02, 15.0)
    found = replay_index(rule, RewardTensor(looks, final), resamples=20)
    assert np.isfinite(found.values).all()
    assert (found.values <= np.nanmax(final, axis=1)[:, None] + 1e-12).all()
    everything = RewardTensor(np.full_like(looks, np.nan), tensor.final)
    nothing = replay_index(rule, everything, resamples=1)
    assert np.isnan(nothing.values).all()
    assert nothing.spent == pytest.approx(np.full((4, 1), min(30, rule.capacity()) * 0.2))


def test_file_gives_the_same_rule(tmp_path):
    book = fit_index(chains(20, 40, seed=10, across=1.0), PRICES, [20.0, 60.0], steps=LOOKS)
    (tmp_path / "index.json").write_text(book.to_json())
    again = IndexBook.from_json(tmp_path / "index.json")
    tensor = chains(5, 40, seed=11, across=1.0)
    for budget in (2.0, 4.0):
        one, other = (replay_index(which.at(budget), tensor, resamples=2) for which in (book, again))
        assert np.array_equal(one.values, other.values)
    assert book.entries[0][1] > book.entries[1][1]  # a larger budget has a lower price


def test_refusals(tmp_path):
    model = true_model()
    costs = model.costs(PRICES)
    with pytest.raises(InputError, match="does not pay for one candidate"):
        IndexRule(model, costs, 0.1, 0.9)
    with pytest.raises(InputError, match="positive"):
        IndexRule(model, costs, 0.0, 2.0)
    with pytest.raises(InputError, match="not recorded"):
        blank = chains(3, 10, seed=12)
        looks = blank.looks.copy()
        looks[:, :, 1] = np.nan
        fit_index(RewardTensor(looks, blank.final), PRICES, [20.0], steps=LOOKS)
    with pytest.raises(InputError, match="do not vary"):
        ScoreModel.fit(RewardTensor(np.zeros((4, 5, CALLS)), np.zeros((4, 5))), LOOKS)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(InputError, match="Cannot read an index rule"):
        IndexBook.from_json(tmp_path / "x.json")
