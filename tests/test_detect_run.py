"""Scoring captions alone, as a run: what it writes, what it refuses, and that killing it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from schemas import validate_run
from typer.testing import CliRunner

from diffkit.errors import InputError
from diffkit.loading import load_pipeline
from diffkit.suspects import Suspect
from memorization.cli.detect import detect as command
from memorization.detection.run import detect
from memorization.detection.settings import DetectSettings
from memorization.detection.summary import summarise_detection
from memorization.items import Gathered, gather

QUICK = DetectSettings(detectors=("anisotropy", "noise_magnitude"), seeds=2, num_inference_steps=2, micro_batch=4)


def record(role: str, value: float | None, name: str = "anisotropy") -> dict[str, Any]:
    reason = None if value is not None else "broken"
    return {
        "id": "x",
        "role": role,
        "prompt": "a cat",
        "kind": None,
        "scores": {name: {"value": value, "seeds": [value], "reason": reason}},
    }


def table(suspects: list[float | None], controls: list[float | None]) -> dict[str, dict[str, Any]]:
    rows = {f"suspect:{i}": record("suspect", value) for i, value in enumerate(suspects)}
    return rows | {f"control:{i}": record("control", value) for i, value in enumerate(controls)}


def test_the_threshold_comes_from_the_controls_and_unknown_is_counted() -> None:
    settings = DetectSettings(detectors=("anisotropy",))
    found = summarise_detection(table([25.0, 19.0, None], [float(i) for i in range(20)]), settings)
    entry = found["detectors"]["anisotropy"]
    assert entry["threshold"]["value"] == 19.0
    assert entry["threshold"]["false_alarms"]["count"] == 0
    assert entry["threshold"]["false_alarms"]["n"] == 20
    assert [row["flagged"] for row in found["findings"].values()] == [True, False, None]
    assert [row["scores"]["anisotropy"]["p"] for row in found["findings"].values()] == [1 / 21, 2 / 21, None]
    assert found["flagged"] == 1
    assert entry["flagged"]["n"] == 2
    assert found["unscored"] == [{"key": "suspect:2", "detector": "anisotropy", "reason": "broken"}]


def test_with_too_few_controls_nothing_is_flagged_unless_a_threshold_is_given() -> None:
    rows = table([25.0], [1.0, None, *[2.0] * 17])
    found = summarise_detection(rows, DetectSettings(detectors=("anisotropy",)))
    assert found["findings"]["suspect:0"]["flagged"] is None
    assert "18 controls were scored, at least 19" in found["detectors"]["anisotropy"]["threshold"]["source"]
    given = summarise_detection(rows, DetectSettings(detectors=("anisotropy",), threshold=24.0))
    assert given["findings"]["suspect:0"]["flagged"] is True


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"detectors": ("nois_magnitude",)}, "Did you mean 'noise_magnitude'"),
        ({"detectors": ("sharpness", "sharpness")}, "each once"),
        ({"detectors": ()}, "one or more"),
        ({"threshold": 1.0}, "single one"),
        ({"fpr": 1.0}, "false alarms"),
        ({"seeds": 0}, "seeds of at least 1"),
        ({"guidance_scale": -1.0}, "guidance"),
    ],
)
def test_settings_refuse_what_cannot_be_meant(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DetectSettings(**wrong)


@pytest.fixture
def captions(tmp_path: Path) -> Gathered:
    (tmp_path / "suspects.txt").write_text("a single dahlia in bloom\na red circle left of a blue square on gray\n")
    (tmp_path / "controls.txt").write_text("gravel ground texture\nrails of a fire escape\n")
    return gather(tmp_path / "suspects.txt", tmp_path / "controls.txt")


def test_a_resumed_run_writes_the_same_and_scores_nothing_twice(tmp_path: Path, captions: Gathered) -> None:
    pipe = load_pipeline("lab")
    whole = detect(pipe, captions, out=tmp_path / "whole", name="lab", settings=QUICK)
    assert whole["suspects"] == whole["controls"] == 2
    assert whole["unscored"] == []
    lines = (tmp_path / "whole" / "journal.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["key"] for line in lines] == [item.key for item in captions.items]
    cut = tmp_path / "cut"
    detect(pipe, captions, out=cut, name="lab", settings=QUICK)
    (cut / "journal.jsonl").write_text(lines[0] + lines[1][:30])  # killed in the middle of the second line
    (cut / "summary.json").unlink()
    assert detect(pipe, captions, out=cut, name="lab", settings=QUICK) == whole
    assert (cut / "journal.jsonl").read_text() == (tmp_path / "whole" / "journal.jsonl").read_text()
    with pytest.raises(InputError, match=r"settings\.seeds is 2 there and 3 here"):
        other = DetectSettings(detectors=QUICK.detectors, seeds=3, num_inference_steps=2, micro_batch=4)
        detect(pipe, captions, out=cut, name="lab", settings=other)


def test_captions_in_error_are_tried_again(tmp_path: Path, captions: Gathered) -> None:
    """A record of an unknown score, as a broken session left it, is superseded by that of a sound run."""
    pipe, out = load_pipeline("lab"), tmp_path / "run"
    whole = detect(pipe, captions, out=out, name="lab", settings=QUICK)
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    broken = json.loads(lines[1])
    broken["item"]["scores"] = {
        name: {"value": None, "seeds": [None, None], "reason": "not finite"} for name in QUICK.detectors
    }
    (out / "journal.jsonl").write_text(lines[0] + json.dumps(broken) + "\n" + "".join(lines[2:]))
    assert detect(pipe, captions, out=out, name="lab", settings=QUICK) == whole
    *_, superseding = (out / "journal.jsonl").read_text().splitlines()
    assert json.loads(superseding) == json.loads(lines[1]) | {"again": True}


def test_a_pipeline_knows_the_name_it_was_loaded_by(tmp_path: Path) -> None:
    suspects = [Suspect("a", "a single dahlia in bloom")]
    summary = detect(load_pipeline("lab"), suspects, out=tmp_path / "run", settings=QUICK)
    assert (summary["model"], summary["model_sha256"], summary["controls"]) == ("lab", None, 0)
    with pytest.raises(InputError, match="leave out controls"):
        detect("lab", gather("lab:planted", None), suspects, out=tmp_path / "other")


def run_command(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [*arguments])


def test_the_command_gives_json_on_stdout_and_its_exit_codes(tmp_path: Path, captions: Gathered) -> None:
    quick = ["--detectors", "anisotropy", "--seeds", "1", "--steps", "2", "--format", "json"]
    files = ["--suspects", str(tmp_path / "suspects.txt"), "--controls", "none"]
    done = run_command(*quick, *files, "--out", str(tmp_path / "a"), "--threshold", "-5", "--fail-on", "flagged")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == json.loads((tmp_path / "a" / "summary.json").read_text())
    validate_run(tmp_path / "a", "detect")
    never = run_command(*quick, *files, "--out", str(tmp_path / "a"), "--threshold", "-5")
    assert never.exit_code == 0
    assert isinstance(run_command(*quick, *files).exception, InputError)  # no --out
    unguided = ["--detectors", "bright_ending", "--guidance", "1", "--seeds", "1", "--steps", "2", "--format", "table"]
    broken = run_command(*unguided, *files, "--out", str(tmp_path / "b"))
    assert broken.exit_code == 3
    assert "guidance above 1" in (tmp_path / "b" / "summary.json").read_text()


def test_dry_run_counts_the_work_and_writes_nothing(tmp_path: Path, captions: Gathered) -> None:
    done = run_command(
        *["--suspects", str(tmp_path / "suspects.txt"), "--controls", str(tmp_path / "controls.txt"), "--dry-run"],
        *["--detectors", "noise_magnitude,anisotropy", "--format", "json", "--out", str(tmp_path / "none")],
    )
    plan = json.loads(done.stdout)
    assert plan["denoiser rows at most"] == (2 * 20 + 4) * 4 * 4
    assert not (tmp_path / "none").exists()
