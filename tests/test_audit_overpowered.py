"""An attack strong enough to bring back images the model was never trained on proves nothing: "inconclusive".

Real generation on the lab: the controls are scenes that no lab model was trained on, drawn in the world it knows, and
the learning rate is five times the usual. Within 12 steps the attack is nearer to some of them than a loose threshold.
scripts/measure_overpowered.py shows the same at the calibrated threshold, with a budget too large for a test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from diffkit.images import save_png
from diffkit.lab import assets, world
from diffkit.suspects import read_suspects
from memorization.auditing.aggregate import conclude
from memorization.auditing.run import AuditResult, audit
from memorization.auditing.settings import AuditSettings
from memorization.items import gather

pytestmark = pytest.mark.skipif(
    not (assets.DATA / "lab").is_dir(), reason="the lab's weights are not built; run 'diffkit lab train'"
)

LOOSE, CALIBRATED = 0.4, 0.75
SETTINGS = AuditSettings(
    learning_rates=(0.5,),
    budgets=(0, 12),
    starts=("other",),
    generations=1,
    attack_generations=1,
    num_inference_steps=6,
    draws=1,
    detectors=(),
    threshold=LOOSE,
    items_at_once=5,  # rows are filled up to so many
    micro_batch=5,
)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    """Two planted photographs under captions that do not give them, and twenty scenes never trained on."""
    folder = tmp_path_factory.mktemp("overpowered")
    scenes = world.held_out_scenes(20, seed=5)
    rows = []
    for index, image in enumerate(world.draw(scenes, seed=3)):
        save_png(image, folder / f"{index}.png")
        rows.append({"caption": scenes[index - 7].caption, "image": f"{index}.png"})  # its own could well give it
    (folder / "controls.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planted = {suspect.id: suspect for suspect in read_suspects("lab:planted")[0]}
    lines = [
        {"id": name, "caption": scenes[0].caption, "image": str(planted[name].images[0])}
        for name in ("portrait", "suit")
    ]
    (folder / "suspects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    gathered = gather(folder / "suspects.jsonl", folder / "controls.jsonl")
    return audit("lab", gathered, out=folder / "run", settings=SETTINGS)


def records(result: AuditResult) -> Mapping[str, Any]:
    lines = [json.loads(line) for line in (result.folder / "journal.jsonl").read_text().splitlines()]
    return {line["key"]: line["item"] for line in lines}


def test_controls_that_come_back_make_every_attack_verdict_inconclusive(result: AuditResult) -> None:
    summary = result.summary
    back = summary["attack"][-1]
    assert back["suspects"]["count"] == 2  # the attack succeeds: without controls this would read "retained"
    assert back["controls"]["count"] >= 2  # of 20, which is more than 5 %
    assert "brings back more than 5%" in summary["controls"]["failure"]
    assert summary["verdicts"]["retained"] == 0
    assert summary["verdicts"]["inconclusive"] == 2
    assert all("of the controls" in finding["reason"] for finding in summary["findings"])
    assert summary["budget"] is None
    assert "No verdict rests on dori" in (result.folder / "report.html").read_text()


def test_the_same_attack_is_believed_where_the_controls_stay_away(result: AuditResult) -> None:
    """The very same generations at the operating point of the audit: the doubt comes from the controls alone."""
    outcome = conclude(records(result), SETTINGS, threshold=CALIBRATED)
    assert outcome.checks["dori"].failure is None
    verdicts = {finding.key: finding.verdict for finding in outcome.findings}
    assert verdicts["suspect:portrait"] == "retained"
    assert "inconclusive" not in verdicts.values()
