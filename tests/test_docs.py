"""The documents agree with what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_figures_in_the_readme_are_those_measured() -> None:
    line = [sys.executable, str(ROOT / "scripts" / "readme_figures.py"), "--check"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
