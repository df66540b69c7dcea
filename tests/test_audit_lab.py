"""The audit on the lab itself: the positive control. Planted images come back; its twin never saw them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffkit.lab import assets
from memorization.auditing.run import AuditResult, audit
from memorization.auditing.settings import AuditSettings
from memorization.items import gather

pytestmark = pytest.mark.skipif(
    not (assets.DATA / "lab").is_dir(), reason="the lab's weights are not built; run 'diffkit lab train'"
)

SETTINGS = AuditSettings(
    budgets=(0, 10),
    starts=("other",),
    generations=2,
    attack_generations=1,
    num_inference_steps=10,
    draws=4,
    items_at_once=2,  # rows are filled up to so many
    micro_batch=4,
    other_captions=("a red circle left of a blue square on gray", "a pink square above a cyan circle on black"),
    attack_all=True,
)


def run(model: str, folder: Path) -> AuditResult:
    gathered = gather("lab:planted", "lab:controls", limit=2, limit_controls=2)
    return audit(model, gathered, out=folder / model, settings=SETTINGS)


def test_planted_images_are_found_and_controls_are_not(tmp_path: Path) -> None:
    summary = run("lab", tmp_path).summary
    assert [finding["verdict"] for finding in summary["findings"]] == ["replicated"] * 2
    assert all(finding["caption"] > 0.8 for finding in summary["findings"])
    assert summary["controls"]["caption"]["count"] == 0
    assert summary["attack"][1]["suspect_median"] > summary["attack"][1]["control_median"] + 0.3
    # No bound on the AUC: in the lab scene captions steer as hard as planted ones.
    heard = summary["detectors"]["noise_magnitude"]
    assert (heard["suspects"], heard["controls"]) == (2, 2)
    assert 0 <= heard["auc"] <= 1
    assert summary["operating_point"]["by_distortion"]["autoencoder"] == 1.0


def test_the_twin_holds_none_of_them(tmp_path: Path) -> None:
    summary = run("lab-clean", tmp_path).summary
    assert summary["verdicts"]["replicated"] == summary["verdicts"]["retained"] == 0
    assert all(finding["caption"] < 0.5 for finding in summary["findings"])
    assert summary["attack"][1]["suspect_median"] < 0.3  # too few controls for a verdict: by itself
