"""The documents agree with what was measured and with what the commands say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("script", ["readme_figures", "help_texts", "families_table"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    line = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_detector_of_the_docs_runs() -> None:
    page = (ROOT / "docs" / "memorization.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    done = subprocess.run([sys.executable, "-c", code[1]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.1 < float(done.stdout) < 10
