"""The populations and statistics of the simulation of evidence, against brute force."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

from evidence_records import Item, extract
from evidence_simulation import VERDICTS, WITHOUT, Layout, Population, decide, draw_audit
from evidence_statistics import above_reference, deviations, highest, steps_needed

BUDGETS = (0, 5, 10)


def item(*similarities: float, reference=None) -> Item:
    return Item("a", "control", "scene", None, [0.1], [[s] for s in similarities], reference, None, 1)


def test_statistics_of_an_item() -> None:
    known = item(0.9, 0.2, 0.6, reference=[[0.0], [0.3], [0.1]])
    assert np.tanh(highest(known, BUDGETS)) == pytest.approx(0.6)  # the start decides nothing
    assert above_reference(known, BUDGETS) == pytest.approx(np.arctanh(0.6) - np.arctanh(0.3))
    assert above_reference(item(0.1, 0.2, 0.3), BUDGETS) is None
    z = np.arctanh([0.2, 0.5, 0.6])
    assert steps_needed(item(0.0, 0.2, 0.6), BUDGETS) == pytest.approx(-(5 + 5 * (z[1] - z[0]) / (z[2] - z[0])))
    assert steps_needed(item(0.0, 0.2, 0.4), BUDGETS) == -20


def test_deviations_are_those_of_the_hardest_kind_that_is_large_enough() -> None:
    random = np.random.default_rng(0)
    kinds = {"easy": random.normal(0, 0.1, 15), "hard": random.normal(0.4, 0.3, 12), "few": random.normal(2, 1, 5)}
    hard = kinds["hard"]
    expected = (1.5 - hard.mean()) / (hard.std(ddof=1) * np.sqrt(1 + 1 / 12))
    assert deviations(1.5, kinds) == pytest.approx(expected)
    assert deviations(1.5, {"few": kinds["few"]}) is None


@pytest.mark.parametrize("tail", ["resampled", "normal", "t4", "t3"])
def test_populations_keep_mean_and_covariance(tail) -> None:
    random = np.random.default_rng(1)
    rows = random.multivariate_normal([0.1, 0.5], [[0.04, 0.01], [0.01, 0.09]], 15)
    drawn = Population({"scene": rows}, tail).draw("scene", 200_000, random)
    assert np.allclose(drawn.mean(axis=0), rows.mean(axis=0), atol=0.01)
    if tail != "t3":  # its sample covariance has no variance of its own
        assert np.allclose(np.cov(drawn.T), np.cov(rows.T), atol=0.006)
    if tail in ("t4", "t3"):
        freedom = float(tail[1:])
        share = stats.t.sf(4 * np.sqrt(freedom / (freedom - 2)), freedom)  # beyond four deviations
        above = (drawn[:, 0] - rows[:, 0].mean()) / rows[:, 0].std(ddof=1) > 4
        assert above.mean() == pytest.approx(share, rel=0.2)


def test_an_audit_has_its_kinds_and_its_memorized_are_found() -> None:
    random = np.random.default_rng(2)
    rows = {"control": random.normal(0.1, 0.1, (16, 4)), "scene": random.normal(0.2, 0.1, (14, 4))}
    population = Population(rows)
    drawn = draw_audit(population, population, random, np.repeat([[2.0, 2.0, 0.1, 0.2]], 3, axis=0))
    assert [drawn.kinds.count(kind) for kind in population.rows] == [16, 14]
    assert drawn.suspects.shape == (500, 4)
    for rule in (VERDICTS, WITHOUT):
        alone, whole = decide(rule, drawn, Layout((5, 10), ()), 0.75)
        assert whole[:3].all()
        assert not whole[3:].any()
        assert alone[:3].all()
    drawn.suspects[:3, 2:] = 1.9  # as near on the reference model
    assert not decide(VERDICTS, drawn, Layout((5, 10), ()), 0.75)[1].any()


def test_records_join_the_reference_by_item() -> None:
    def record(role: str, name: str, value: float) -> dict[str, object]:
        return {"id": name, "role": role, "kind": None, "caption": [0.1], "attack": {"dori": {"other": [[value]]}},
                "detectors": {}, "sample_gradients": 1}  # fmt: skip

    own = [record("suspect", "cat", 0.8), record("suspect", "un-1", 0.2), record("control", "fur", 0.1)]
    own += [record("reference", "cat", 0.3), record("control", "lost", 0.0) | {"attack": None}]
    own += [record("reference_control", "fur", 0.15)]
    items = {i.id: i for i in extract(dict(enumerate(map(dict, own))), "dori", "other")}
    assert {name: (i.group, i.reference) for name, i in items.items()} == {
        "cat": ("planted", [[0.3]]),
        "un-1": ("never planted", None),
        "fur": ("control", [[0.15]]),
    }
