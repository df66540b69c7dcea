"""Schedules: exact numbers, against brute force and against hand-made examples."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffkit.errors import InputError
from diffkit.ledger import Cost, Prices
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import affordable_candidates
from ttsnap.search.selection import ranking, top_k

CALLS = 20
SHARES = st.integers(1, 100).map(lambda hundredths: hundredths / 100)
SCHEDULES = st.lists(st.integers(0, CALLS - 2), unique=True, max_size=4).flatmap(
    lambda steps: st.tuples(st.just(tuple(sorted(steps))), st.tuples(*[SHARES] * len(steps)))
)


def simulate(schedule: PruningSchedule, n: int) -> Cost:
    """Run the schedule call by call, as a person with a tally sheet would."""
    calls = scored = 0
    looks = dict(zip(schedule.steps, schedule.keep, strict=True))
    for step in range(CALLS):
        calls += n
        if step in looks or step == CALLS - 1:
            scored += n
        if step in looks:
            exact = Fraction(round(looks[step] * 100), 100) * n
            n = max(1, int(exact) + (1 if exact - int(exact) >= Fraction(1, 2) else 0))
    return Cost(calls, scored, scored)


@given(SCHEDULES, st.integers(1, 300))
def test_cost_is_what_running_it_costs(parts, n):
    schedule = PruningSchedule(*parts)
    assert schedule.cost(n, CALLS) == simulate(schedule, n)


@given(SCHEDULES, st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(1.0, 40.0))
def test_budget_buys_the_most_candidates_that_fit(parts, decode, verify, best_of):
    schedule, prices = PruningSchedule(*parts), Prices(1.0, decode, verify)
    limit = PruningSchedule().cost(1, CALLS).at(prices) * best_of

    def cost(n):
        return schedule.cost(n, CALLS).at(prices)

    try:
        n = affordable_candidates(limit, schedule, CALLS, prices)
    except InputError:
        assert cost(1) > limit
        return
    brute = next(k for k in range(1, 10_000) if cost(k + 1) > limit)
    assert n == brute


@given(SCHEDULES, st.integers(1, 300))
def test_survivors_never_grow_and_never_end(parts, n):
    left = [n, *PruningSchedule(*parts).survivors(n)]
    assert left == sorted(left, reverse=True)
    assert left[-1] >= 1


def test_the_published_schedule_by_hand():
    schedule = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")
    assert schedule.survivors(32) == [13, 5, 3]
    assert schedule.cost(32, 20) == (32 * 3 + 13 * 4 + 5 * 5 + 3 * 8, 53, 53, 0)
    assert schedule.cost(32, 20, preview=True) == (32 * 3 + 13 * 4 + 5 * 5 + 3 * 8, 3, 53, 50)
    assert PruningSchedule().cost(16, 20) == (320, 16, 16, 0)
    assert PruningSchedule.parse("0:0.07").survivors(50) == [4]  # 3.5 rounds up, though 0.07 * 50 < 3.5 in floats
    assert PruningSchedule.parse("0:0.4").survivors(1) == [1]


def test_forms_agree(tmp_path):
    schedule = PruningSchedule((2, 6), (0.4, 0.25))
    (tmp_path / "s.json").write_text(schedule.to_json())
    for form in (schedule, str(schedule), tmp_path / "s.json", str(tmp_path / "s.json")):
        assert load_schedule(form) == schedule
    assert load_schedule(None) == load_schedule("") == PruningSchedule()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1", "step:share"),
        ("1:x", "step:share"),
        ("-1:0.5", "whole number from 0"),
        ("2:0.5,2:0.5", "must rise"),
        ("2:0", "must lie in"),
        ("2:nan", "must lie in"),
        ("nowhere.json", "Cannot read a schedule"),
    ],
)
def test_refusals(text, sentence):
    with pytest.raises(InputError, match=sentence):
        load_schedule(text)


def test_refuses_other_refusals():
    with pytest.raises(InputError, match="one share for each step"):
        PruningSchedule((1, 2), (0.5,))
    with pytest.raises(InputError, match="before its last one"):
        PruningSchedule((19,), (0.5,)).validate(20)
    PruningSchedule((18,), (0.5,)).validate(20)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf]), max_size=12), st.integers(0, 12), st.booleans())
def test_survivors_are_the_best_and_ties_go_to_the_first(scores, k, higher):
    chosen = top_k(scores, k, higher_is_better=higher)
    finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
    assert chosen == sorted(chosen)
    assert len(chosen) == min(k, len(finite))
    sign = 1 if higher else -1
    for out in set(finite) - set(chosen):
        assert all((sign * scores[i], -i) > (sign * scores[out], -out) for i in chosen)
    ranked = ranking(scores, higher_is_better=higher)
    assert ranked == sorted(finite, key=lambda i: (-sign * scores[i], i))
