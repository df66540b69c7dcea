"""The notebooks are committed with their outputs, and show the same kinds of things when they run again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_BYTES = 600_000
NOT_SHOWN = re.compile(r"Traceback|Warning|(?<![\w.:/])/(home|root|tmp|work|usr|var|opt|mnt|Users)/")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def texts(cell: dict[str, Any]) -> list[str]:
    """The source of a cell and all that it shows as text."""
    shown = [cell["source"]]
    for output in cell.get("outputs", []):
        shown.append(output.get("text", ""))
        shown += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return ["".join(text) for text in shown]


def test_the_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["01_audit", "02_ttsnap", "03_reward_alignment"]


@pytest.mark.timeout(1200)
@every_notebook
def test_a_notebook_runs_and_shows_what_is_committed(path: Path) -> None:
    """In a fresh kernel, from top to bottom; numbers may differ, texts and kinds of output may not."""
    line = [sys.executable, str(ROOT / "scripts" / "execute_notebooks.py"), "--check", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@every_notebook
def test_a_notebook_is_committed_as_it_ran(path: Path) -> None:
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert {output.get("name") for output in outputs} <= {None, "stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert path.stat().st_size < MOST_BYTES


@every_notebook
def test_a_notebook_shows_no_path_warning_or_traceback(path: Path) -> None:
    shown = [text for cell in cells(path) for text in texts(cell)]
    assert [text for text in shown if NOT_SHOWN.search(text)] == []


def test_what_must_not_be_shown_is_noticed() -> None:
    for text in ("see /tmp/run", "'/root/x'", "UserWarning: old", "Traceback (most recent call last)"):
        assert NOT_SHOWN.search(text)
    assert not NOT_SHOWN.search("docs/tmp/x, https://host/home/x, 1/2")


@every_notebook
def test_a_notebook_explains_each_cell(path: Path) -> None:
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert kinds[0] == "markdown"
    assert "".join(cells(path)[0]["source"]).startswith("# ")
