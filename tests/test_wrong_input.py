"""Wrong input is refused before anything is written: the corrected command has the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run_identity import BASE, DATA, replaced
from typer.testing import CliRunner

from diffkit.cli import app

#: Command and wrong options. The message names what is wrong.
WRONG: list[tuple[str, list[str], str]] = [
    ("audit", ["--copies", "tilde"], "tilde"),
    ("audit", ["--copies", "sscd:nowhere.safetensors"], "nowhere"),
    ("audit", ["--attack", "doris"], "dori"),
    ("audit", ["--detector", "sharpnes"], "sharpness"),
    ("audit", ["--size", "30x30"], "30"),
    ("audit", ["--pooled", "attacked"], "pooled"),
    ("audit", ["--lora", "nowhere.safetensors"], "nowhere"),
    ("audit", ["--mitigation", "nemo"], "another one"),
    ("audit", ["--reference-model", "./nowhere"], "nowhere"),
    ("audit", ["--other-captions", "suspects/0.png"], "0.png"),
    ("audit detect", ["--detectors", "sharpnes"], "sharpness"),
    ("audit detect", ["--detectors", "noise_magnitude:stepps=1"], "stepps"),
    ("audit detect", ["--mitigation", "nemo"], "another one"),
    ("audit compare", ["--quality", "nowhere.txt"], "nowhere"),
    ("audit compare", ["--rewards", "labb"], "labb"),
    ("locality", ["--threshold", "0.5", "--group", "2", "--ordinary", "suspects/0.png"], "0.png"),
    ("locality", ["--mitigation", "nemo"], "another one"),
    ("mitigate", ["--set", "seedss=1"], "seeds"),
    ("mitigate", ["--set", "captions=suspects/nowhere.txt"], "nowhere"),
    ("mitigate", ["--set", "layers=nowhere.*"], "nowhere"),
    ("mitigate", ["--only", "nobody"], "nobody"),
    ("ttsnap collect", ["--rewards", "labb"], "labb"),
    ("ttsnap collect", ["--record", "99"], "99"),
    ("ttsnap collect", ["--preview-vae", "nowhere"], "nowhere"),
    ("ttsnap compare", ["--budget", "0.01x"], "budget"),
    ("ttsnap compare", ["--searches", "ttsq"], "ttsq"),
    ("ttsnap compare", ["--schedule", "7:0.5"], "7"),
    ("ttsnap distill", ["--levels", "99"], "99"),
    ("ttsnap distill", ["--held-out", "0.5", "--reward", "lab-trio"], "lab-trio"),
    ("ttsnap generate", ["--height", "30"], "30"),
    ("ttsnap generate", ["--budget", "0.01x"], "budget"),
    ("ttsnap generate", ["--budget", "2x", "--winners", "9"], "9"),
    ("ttsnap generate", ["--reward", "labb"], "labb"),
    ("ttsnap generate", ["--schedule", "7:0.5"], "7"),
]


@pytest.mark.parametrize(
    ("name", "more", "word"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_wrong_input_writes_nothing(
    name: str, more: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(DATA)
    result = CliRunner().invoke(
        app, [*name.split(), *replaced(BASE[name], more), "--out", str(tmp_path / "runs" / "out")]
    )
    assert result.exit_code == 2, result.output
    assert word in " ".join(result.output.split())
    assert list(tmp_path.iterdir()) == []
