"""From a journal record to an item's scores: over seeds, then over starts and learning rates."""

from __future__ import annotations

from typing import Any

import pytest

from memorization.auditing.aggregate import scores

ATTACK = {"dori": {"other": [[0.1, 0.2, 0.9], [0.5, 0.4, 0.6]], "gaussian": [[0.3, 0.0, 0.3], [0.4, 0.45, 0.95]]}}


def record(**changes: Any) -> Any:
    return {"caption": [0.1, 0.9, 0.4], "attack": ATTACK, "ceiling": [0.98], "reason": None, "kind": None, **changes}


@pytest.mark.parametrize(
    ("how", "caption", "curve"), [("median", 0.4, {0: 0.3, 10: 0.5}), ("maximum", 0.9, {0: 0.9, 10: 0.95})]
)
def test_median_and_maximum_over_seeds_then_the_best_start(how: Any, caption: float, curve: dict[int, float]) -> None:
    result = scores("suspect:a", record(), (0, 10), "dori", how)
    assert (result.caption, result.curve, result.ceiling) == (caption, curve, 0.98)


def test_what_could_not_be_scored_is_unknown() -> None:
    result = scores("suspect:a", record(caption=None, attack=None, ceiling=None, reason="no image"), (0, 10), "dori")
    assert (result.caption, result.curve, result.reason) == (None, None, "no image")
    assert scores("suspect:a", record(), (0, 10), "words").curve is None  # an attack that did not run
