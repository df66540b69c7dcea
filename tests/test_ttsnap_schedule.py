"""Schedules: exact numbers, against brute force and against hand-made examples."""

from __future__ import annotations

import json
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
LOOKS = st.integers(0, CALLS - 2).flatmap(
    lambda step: st.tuples(st.just(step), SHARES, st.one_of(st.just(0), st.integers(0, CALLS - 1 - step)))
)
SCHEDULES = st.lists(LOOKS, unique_by=lambda look: look[0], max_size=4).map(sorted)


def scheduled(looks) -> PruningSchedule:
    steps, keep, lookahead = zip(*looks, strict=True) if looks else ((), (), ())
    return PruningSchedule(steps, keep, lookahead=lookahead)


def simulate(schedule: PruningSchedule, n: int) -> Cost:
    """Run the schedule call by call, as a person with a tally sheet would."""
    calls = scored = 0
    ahead = dict(zip(schedule.steps, schedule.lookahead, strict=True)) if schedule.lookahead else {}
    looks = dict(zip(schedule.steps, schedule.keep, strict=True))
    for step in range(CALLS):
        calls += n
        if step in looks or step == CALLS - 1:
            calls += n * ahead.get(step, 0)
            scored += n
        if step in looks:
            exact = Fraction(round(looks[step] * 100), 100) * n
            n = max(1, int(exact) + (1 if exact - int(exact) >= Fraction(1, 2) else 0))
    return Cost(calls, scored, scored)


@given(SCHEDULES, st.integers(1, 300))
def test_cost_is_what_running_it_costs(looks, n):
    schedule = scheduled(looks)
    schedule.validate(CALLS)
    assert PruningSchedule.parse(str(schedule)) == schedule
    assert schedule.cost(n, CALLS) == simulate(schedule, n)


@given(SCHEDULES, st.floats(0.0, 3.0), st.floats(0.0, 3.0), st.floats(1.0, 40.0))
def test_budget_buys_the_most_candidates_that_fit(looks, decode, verify, best_of):
    schedule, prices = scheduled(looks), Prices(1.0, decode, verify)
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
def test_survivors_never_grow_and_never_end(looks, n):
    left = [n, *scheduled(looks).survivors(n)]
    assert left == sorted(left, reverse=True)
    assert left[-1] >= 1


def test_the_published_schedule_by_hand():
    schedule = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")
    assert schedule.survivors(32) == [13, 5, 3]
    assert schedule.cost(32, 20) == (32 * 3 + 13 * 4 + 5 * 5 + 3 * 8, 53, 53, 0)
    assert schedule.cost(32, 20, preview=True) == (32 * 3 + 13 * 4 + 5 * 5 + 3 * 8, 3, 53, 50)
    assert PruningSchedule().cost(16, 20) == (320, 16, 16, 0)
    assert PruningSchedule.parse("1:0.06+3").cost(50, 20) == (50 * 5 + 3 * 18, 53, 53, 0)
    assert PruningSchedule.parse("0:0.07").survivors(50) == [4]  # 3.5 rounds up, though 0.07 * 50 < 3.5 in floats
    assert PruningSchedule.parse("0:0.4").survivors(1) == [1]


@pytest.mark.parametrize("lookahead", [(), (3, 0), (0, 2)])
def test_forms_agree(tmp_path, lookahead):
    schedule = PruningSchedule((2, 6), (0.4, 0.25), lookahead=lookahead)
    assert ("lookahead" in json.loads(schedule.to_json())) == bool(lookahead)
    (tmp_path / "s.json").write_text(schedule.to_json())
    for form in (schedule, str(schedule), tmp_path / "s.json", str(tmp_path / "s.json")):
        assert load_schedule(form) == schedule
    assert str(schedule) == {(): "2:0.4,6:0.25", (3, 0): "2:0.4+3,6:0.25", (0, 2): "2:0.4,6:0.25+2"}[lookahead]
    assert PruningSchedule((2, 6), (0.4, 0.25), lookahead=(0, 0)) == PruningSchedule((2, 6), (0.4, 0.25))
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
        ("2:0.5+0", "at least 1 call"),
        ("2:0.5+-1", "at least 1 call"),
        ("2:0.5+", "step:share.calls to look ahead"),
        ("2:0.5+x", "step:share.calls to look ahead"),
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
    PruningSchedule((18,), (0.5,), lookahead=(1,)).validate(20)
    with pytest.raises(InputError, match="ahead by 3 calls after step 17, but only 2 of the 20 are left there"):
        PruningSchedule((17,), (0.5,), lookahead=(3,)).validate(20)
    with pytest.raises(InputError, match="one lookahead for each step"):
        PruningSchedule((1, 2), (0.5, 0.5), lookahead=(1,))
    with pytest.raises(InputError, match="whole number of calls"):
        PruningSchedule((1, 2), (0.5, 0.5), lookahead=(1.5, 2))


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
