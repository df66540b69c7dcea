"""What an audit takes from its images alone: operating point, near-duplicates, controls that show one picture."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.runs.identity import config_hash
from diffkit.suspects import Suspect
from memorization.auditing.models import AuditedModel
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.auditing.verify import verify_audit
from memorization.comparison.paired import read_runs

SETTINGS = AuditSettings(
    budgets=(0, 1), starts=("other",), generations=1, attack_generations=1, num_inference_steps=1, draws=1,
    detectors=(), threshold=0.75, other_captions=("a cat",),
)  # fmt: skip
KEPT = ("operating_point.json", "near_duplicates.json")


@pytest.fixture
def suspects(tmp_path: Path) -> list[Suspect]:
    """Three suspects, two of them with one picture."""
    pictures = textures.dead_leaves(2, generator=torch.Generator().manual_seed(1))
    for index in range(3):
        save_png(pictures[index % 2], tmp_path / f"{index}.png")
    return [Suspect(str(index), "a dog", (tmp_path / f"{index}.png",)) for index in range(3)]


def run(suspects: list[Suspect], out: Path) -> dict[str, Any]:
    audit(AuditedModel("tiny", tiny_pipeline), suspects, out=out, settings=SETTINGS)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_computed_once_is_read_back_while_it_holds(suspects: list[Suspect], tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(suspects, out)
    assert summary["clusters"]["labels"] == {"suspect:0": 0, "suspect:1": 1, "suspect:2": 0}
    point, duplicates = (json.loads((out / name).read_text()) for name in KEPT)
    assert point["value"] == summary["operating_point"]
    assert duplicates["value"] == summary["clusters"]["labels"]
    assert duplicates["threshold"] == (1 + summary["operating_point"]["threshold"]) / 2

    labels = dict.fromkeys(duplicates["value"], 7)
    edit(out / KEPT[1], value=labels)
    edit(out / KEPT[0], value={**point["value"], "source": "the folder"})
    again = run(suspects, out)
    assert again["clusters"]["labels"] == labels
    assert again["operating_point"]["source"] == "the folder"

    edit(out / KEPT[1], value=labels, threshold=0.9)
    (out / KEPT[0]).write_text("damaged")
    assert run(suspects, out) == summary
    assert [json.loads((out / name).read_text()) for name in KEPT] == [point, duplicates]


def test_controls_that_show_one_picture_count_once(
    suspects: list[Suspect], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data with several captions an image has: its rows are no independent controls."""
    monkeypatch.delenv("DIFFKIT_QUIET")
    captions = ("a cat", "a grey cat", "two cats")
    controls = [Suspect(f"{s.id}-{i}", text, s.images) for s in suspects[:2] for i, text in enumerate(captions)]
    out = tmp_path / "run"
    result = audit(AuditedModel("tiny", tiny_pipeline), suspects[:1], controls, out=out, settings=SETTINGS)
    assert "4 controls show pictures of other controls (control:0-1 that of control:0-0)" in capsys.readouterr().err

    summary = result.summary
    assert summary["controls"]["total"] == summary["clusters"]["distinct_controls"] == 2
    assert summary["clusters"]["repeated_controls"]["control:1-2"] == "control:1-0"
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["id"] for row in rows if "left out" in row["reason"]] == ["0-1", "0-2", "1-1", "1-2"]
    assert "4 more show pictures of these" in (out / "report.html").read_text()
    checks = verify_audit(out, suspects=suspects[:1], controls=controls)["checks"]
    assert not [check for check in checks if check["status"] == "differs"]


def test_other_kinds_of_controls_are_another_audit(suspects: list[Suspect], tmp_path: Path) -> None:
    """They are fitted apart, so that the same rows with other kinds have other p-values."""
    named = [replace(suspect, kind="drawing") for suspect in suspects]
    run(suspects, tmp_path / "plain")
    run(named, tmp_path / "named")
    with pytest.raises(InputError, match="kinds_sha256 is .* there and .* here"):
        run(named, tmp_path / "plain")
    with pytest.raises(InputError, match="not the same audit: kinds_sha256"):
        read_runs([tmp_path / "plain", tmp_path / "named"])

    record = json.loads((tmp_path / "plain" / "run.json").read_text())
    del record["config"]["kinds_sha256"]  # as version 0.1.0 wrote it
    record["config_hash"] = config_hash(record["config"])
    (tmp_path / "plain" / "run.json").write_text(json.dumps(record))
    assert len(read_runs([tmp_path / "plain", tmp_path / "named"])) == 2
    run(named, tmp_path / "plain")
