"""Rows that cannot be read: the first ten on the console, all of them in the run's folder, none without a word."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffkit.cli import app
from diffkit.errors import InputError
from diffkit.runs import Run
from memorization.items import Gathered, gather, write_row_errors

BAD = 13


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [{"caption": f"a dog {index}", "image": f"gone, {index}.png"} for index in range(BAD)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"caption": "a red circle on gray"}]))
    return path


def test_all_rows_in_error_are_in_the_folder(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFKIT_QUIET")
    small = ["--controls", "none", "--detectors", "seed_agreement", "--seeds", "2", "--steps", "1"]
    line = ["audit", "detect", "--suspects", str(rows), *small, "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 3, result.output
    assert result.stderr.count("gone, ") == 10
    assert f"... and 3 more: see {tmp_path / 'run' / 'rows_in_error.csv'}" in result.stderr
    with (tmp_path / "run" / "rows_in_error.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["row"] for row in table] == [str(number) for number in range(1, BAD + 1)]
    assert all(f"gone, {index}.png" in row["reason"] for index, row in enumerate(table))
    dry = CliRunner().invoke(app, [*line, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert dry.stderr.count("gone, ") == BAD


def test_without_such_rows_there_is_no_file(tmp_path: Path) -> None:
    with Run.open(tmp_path, config={}, kind="x") as run:
        run.write_text("rows_in_error.csv", "of an earlier session")
        write_row_errors(run, Gathered([], [], []))
    assert not (tmp_path / "rows_in_error.csv").exists()


def test_a_list_without_a_sound_row_says_why(rows: Path) -> None:
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:BAD]))
    with pytest.raises(InputError, match=r"In error: row 1: .*gone, 0\.png; row 2: .*; row 3: .*; and 10 more\."):
        gather(rows)
