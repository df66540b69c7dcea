"""Thresholds and rates against brute force, torchmetrics and exact intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_auroc

from diffkit.errors import InputError
from diffkit.stats import clopper_pearson, tpr_at_fpr
from memorization.detection.calibrate import calibrate_detector, threshold_at

scores = st.floats(-5, 5).map(lambda value: round(value, 1))  # ties on purpose


@given(st.lists(scores, min_size=5, max_size=20), st.lists(scores, min_size=19, max_size=60), st.floats(0, 0.5))
def test_against_brute_force(positives: list[float], negatives: list[float], fpr: float) -> None:
    found = calibrate_detector(positives, negatives, detector="x", fpr=fpr)
    limit = found.threshold.value
    flagged = [value for value in negatives if value > limit]
    assert len(flagged) <= fpr * len(negatives) + 1e-6
    looser = [value for value in negatives if value >= limit]  # the next looser threshold is one too many
    assert len(looser) > fpr * len(negatives) - 1e-6
    assert found.threshold.false_alarms["count"] == len(flagged)
    assert found.found["share"] == pytest.approx(tpr_at_fpr(positives, negatives, fpr))
    labels = torch.tensor([1] * len(positives) + [0] * len(negatives))
    values = torch.tensor(positives + negatives).add(5).div(10).double()  # torchmetrics takes probabilities
    assert found.auc == pytest.approx(float(binary_auroc(values, labels)), abs=1e-6)
    assert found.auc_interval.low <= found.auc + 1e-9
    assert found.auc_interval.high >= found.auc - 1e-9


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Two normals one standard deviation apart have AUC Phi(1 / sqrt(2)) = 0.760."""
    source = np.random.default_rng(0)
    hits = 0
    for trial in range(40):
        found = calibrate_detector(
            list(source.normal(1, 1, 40)), list(source.normal(0, 1, 60)), detector="x", seed=trial
        )
        hits += found.auc_interval.low <= 0.7602 <= found.auc_interval.high
    assert hits >= 33  # 38 expected; 33 or fewer has probability below 1 % at 95 %


def test_a_few_negatives_vouch_for_little() -> None:
    limit = threshold_at(list(range(30)), 0.01)
    assert limit.value == 29
    assert not limit.flags(29)
    assert limit.flags(29.1)
    assert limit.false_alarms["interval"] == pytest.approx(clopper_pearson(0, 30))
    assert limit.false_alarms["interval"].high == pytest.approx(0.1157, abs=1e-4)


def test_hundred_negatives_allow_one_false_alarm_in_hundred() -> None:
    limit = threshold_at(list(range(100)), 0.01)
    assert limit.value == 98
    assert limit.false_alarms["count"] == 1


@pytest.mark.parametrize(
    ("positives", "negatives", "fpr", "message"),
    [
        ([1.0] * 4, [0.0] * 19, 0.01, "at least 5 positives, got 4"),
        ([1.0] * 5, [0.0] * 18, 0.01, "at least 19 negatives, got 18"),
        ([1.0] * 5, [float("nan")] * 19, 0.01, "no finite score"),
        ([1.0] * 5, [0.0] * 19, 1.0, "false alarms"),
    ],
)
def test_refusals(positives: list[float], negatives: list[float], fpr: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate_detector(positives, negatives, detector="x", fpr=fpr)


def test_json_is_json() -> None:
    import json

    found = calibrate_detector([2.0] * 5, [1.0] * 19, detector="x").to_json()
    assert json.loads(json.dumps(found))["found"]["share"] == 1.0
