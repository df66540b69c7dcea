"""How far suspects are attacked: the verdicts are those of the whole ladder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memorization.auditing.controls import Correction, Scores
from memorization.auditing.effort import Effort, least_certain, not_borne_out, of_suspects, unsettled
from memorization.auditing.evidence import to_z
from memorization.auditing.order import needs_reference
from memorization.auditing.p_values import Null
from memorization.auditing.triage import lowest
from memorization.auditing.verdicts import Finding, Rung, judge_ladder

BUDGETS, THRESHOLD = (0, 1, 5, 10), 0.75


def curves(rng: np.random.Generator, n: int, level: float, spread: float) -> list[dict[int, float]]:
    """Similarities that rise with the budget towards a level of their own, in steps of 0.01 so that there are ties."""
    ends = rng.normal(level, spread, n)
    shares = np.sort(rng.uniform(0, 1.2, (n, len(BUDGETS))), axis=1)
    values = np.clip(np.tanh(ends)[:, None] * shares + rng.normal(0, 0.05, shares.shape), -1, 1).round(2)
    return [dict(zip(BUDGETS, row.tolist(), strict=True)) for row in values]


def attacked(scores: Scores, effort: Effort, rung: str) -> Scores:
    """What an audit records of an item that the whole ladder would give these scores.

    Without the start; with other medians, as of fewer images, where the threshold is not reached.
    """
    if effort.skips(scores.key, scores.caption):
        return replace(scores, curve=None, skipped=effort.skips(scores.key, scores.caption))
    curve: dict[int, float] = {}
    for budget, value in list((scores.curve or {}).items())[: effort.looks(rung, BUDGETS)]:
        if budget == 0 and rung in effort.limits:
            continue
        settled = effort.settled.get(rung, -2.0)
        curve[budget] = min(value + 0.1, settled - 0.01) if value < settled else value
        if budget > 0 and value >= effort.certain.get(rung, 2.0):
            return replace(scores, curve=curve, stopped=True)
    return replace(scores, curve=curve)


def verdicts(findings: Sequence[Finding]) -> list[tuple[str, str | None, list[str]]]:
    return [(f.verdict, f.rung, [r.verdict for r in f.rungs.values()] if f.rung != "caption" else []) for f in findings]


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["bh", "holm", "none"]),
    st.sampled_from([(3, 30), (40, 5), (230, 4)]),
    st.floats(0.3, 1.6),
    st.booleans(),
)
@settings(max_examples=16, deadline=None)
def test_the_verdicts_are_those_of_the_whole_ladder(
    seed: int, correction: Correction, sizes: tuple[int, int], control_level: float, controls_on_reference: bool
) -> None:
    """Memorized suspects among others, two attacks, a reference model; controls that come back or do not."""
    rng = np.random.default_rng(seed)
    null, memorized = sizes
    levels = [control_level * 0.8] * null + [1.4] * memorized
    captions = np.concatenate([rng.normal(0.2, 0.2, null), rng.normal(0.7, 0.3, memorized)]).clip(-1, 1).tolist()
    rungs = ("soft-tokens-4", "dori")
    ladder: dict[str, Rung] = {}
    for rung in rungs:
        suspects = [Scores(f"s{i}", captions[i], curves(rng, 1, level, 0.25)[0]) for i, level in enumerate(levels)]
        controls = [
            Scores(f"c{i}", float(rng.normal(0.1, 0.1)), curve, kind="ab"[i % 2])
            for i, curve in enumerate(curves(rng, 30, control_level * 0.6, 0.25))
        ]
        reference = {f"s{i}": Scores(f"r{i}", 0.1, curves(rng, 1, 0.8, 0.4)[0]) for i in range(len(levels))}
        others = {
            c.key: Scores(f"r{c.key}", 0.1, curve)
            for c, curve in zip(controls, curves(rng, 30, control_level * 0.6, 0.2), strict=True)
        }
        ladder[rung] = Rung(suspects, controls, reference, others if controls_on_reference else None)
    options = {"threshold": THRESHOLD, "alpha": 0.05, "correction": correction}
    whole = judge_ladder(ladder, **options)

    scores = {name: rung.controls for name, rung in ladder.items()}
    others = {name: rung.reference_controls for name, rung in ladder.items()}
    effort = of_suspects(scores, others, suspects=len(levels), **options)
    budgets = {name: check.budget for name, check in whole.checks.items()}
    measured = measure(ladder, effort)
    first = judge_ladder(measured, **options).findings
    again = set(unsettled(first, {name: rung.suspects for name, rung in measured.items()}, budgets))
    settled = measure(ladder, effort, whole=again)
    without_reference = judge_ladder(settled, **options).findings
    assert unsettled(without_reference, {name: rung.suspects for name, rung in settled.items()}, budgets) == []
    by_caption, by_attack = needs_reference(without_reference, THRESHOLD)
    until_drawn = Effort(effort.limits, dict.fromkeys(rungs, THRESHOLD), reason="reference")

    def before_the_reference(measured: Mapping[str, Rung]) -> dict[str, Rung]:
        drawn = {
            name: {key: attacked(ladder[name].reference[key], until_drawn, name) for key in by_caption | by_attack}
            for name in rungs
        }
        return {name: rung._replace(reference=drawn[name] or None) for name, rung in measured.items()}

    compared = judge_ladder(before_the_reference(settled), **options).findings
    early = set(not_borne_out(compared, {name: rung.suspects for name, rung in settled.items()}))
    final = judge_ladder(before_the_reference(measure(ladder, effort, whole=again | early)), **options).findings
    assert verdicts(final) == verdicts(whole.findings)


def measure(ladder: Mapping[str, Rung], effort: Effort, whole: set[str] = frozenset()) -> dict[str, Rung]:
    return {
        name: Rung(
            [attacked(s, effort.whole() if s.key in whole else effort, name) for s in rung.suspects],
            rung.controls,
            None,
            rung.reference_controls,
        )
        for name, rung in ladder.items()
    }


def controls(n: int = 30, level: float = 0.2) -> list[Scores]:
    rng = np.random.default_rng(3)
    return [Scores(f"c{i}", 0.1, {0: 0.0, 5: float(rng.normal(level, 0.05))}) for i in range(n)]


def test_the_least_certain_similarity_is_where_the_corrected_p_value_is_alpha() -> None:
    null = Null.of((), controls(), 5, left_out=())
    least = least_certain(null, threshold=0.3, alpha=0.05, tests=100)
    assert least is not None
    assert null.p_values(float(to_z(least))).deciding == pytest.approx(0.05 / 100, rel=1e-3)
    assert least_certain(null, threshold=0.3, alpha=0.05, tests=100, reference=0.4) == pytest.approx(
        np.tanh(np.arctanh(least) + 0.4), abs=1e-4
    )
    assert least_certain(null, threshold=0.96, alpha=0.05, tests=100) == 0.96


def test_nothing_is_certain_where_the_controls_cannot_show_it() -> None:
    null = Null.of((), controls(10), 5, left_out=())
    assert least_certain(null, threshold=0.3, alpha=0.05, tests=1) is None  # by rank p is at least 1 / 11


def test_with_too_few_controls_suspects_are_attacked_to_the_end() -> None:
    effort = of_suspects({"dori": controls(5)}, {}, threshold=0.75, alpha=0.05, correction="bh", suspects=10)
    assert effort.stages("dori", BUDGETS) == [(0, 4)]
    assert effort.caption == 0.75  # with as few no fit is made, and the threshold alone decides


def test_suspects_stay_below_the_budget_at_which_controls_come_back() -> None:
    back = [replace(c, curve={**c.curve, 10: 0.9}) for c in controls()]
    effort = of_suspects({"dori": back}, {}, threshold=0.75, alpha=0.05, correction="bh", suspects=10)
    assert effort.limits == {"dori": 5}
    assert effort.looks("dori", BUDGETS) == 3


def test_controls_that_come_out_of_their_captions_leave_nothing_certain() -> None:
    trained = [replace(c, caption=0.9) for c in controls()]
    effort = of_suspects({"dori": trained}, {}, threshold=0.75, alpha=0.05, correction="bh", suspects=10)
    assert effort == Effort()


def test_controls_scored_later_can_raise_the_budget() -> None:
    short = Scores("s", 0.1, {0: 0.0, 1: 0.2})
    finding = Finding("s", "not shown", "")
    assert unsettled([finding], {"dori": [short]}, {"dori": 5}) == ["s"]
    assert unsettled([finding], {"dori": [short]}, {"dori": 1}) == []
    assert unsettled([finding], {"dori": [replace(short, curve=None, skipped="triage")]}, {"dori": 5}) == []


def test_the_triage_takes_its_share_and_what_could_not_be_ranked() -> None:
    scores = {f"s{i}": float(i) for i in range(10)}
    assert lowest(scores, 0.3) == {f"s{i}" for i in range(7)}
    assert lowest(scores, 1.0) == set()
    assert lowest({**scores, "x": None}, 0.1) == {f"s{i}" for i in range(8)}  # 2 of 11, and the unknown one
