"""The document on rewards: its example runs, its figures are those measured, its names and licences are the code's."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from diffkit.rewards import REWARDS
from diffkit.rewards.aesthetic import Aesthetic
from diffkit.rewards.clip_score import ClipScore
from diffkit.rewards.hps import HPS
from diffkit.rewards.image_reward import ImageReward
from diffkit.rewards.pick_score import PickScore

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_the_example_runs(capsys):
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    exec(compile(code, "docs/rewards.md", "exec"), {"__name__": "example"})
    assert re.fullmatch(r"tensor\(\[0\.\d+, 0\.\d+\]\)\n", capsys.readouterr().out)
    assert "colourful" in REWARDS.names()


def test_the_figures_are_those_measured():
    script = runpy.run_path(str(ROOT / "scripts" / "measure_rewards.py"))
    found = json.loads((ROOT / "docs" / "figures" / "rewards.json").read_bytes())
    assert script["page"](PAGE, found) == PAGE, "run scripts/measure_rewards.py --page"


@pytest.mark.parametrize(
    ("kind", "name"),
    [(ClipScore, "clip-score"), (PickScore, "pick-score"), (HPS, "hps-v2`, `hps-v2.1"),
     (ImageReward, "image-reward"), (Aesthetic, "aesthetic")],
)  # fmt: skip
def test_licences(kind, name):
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert row.endswith(f"| {kind.licence} |")


def test_every_reward_is_named():
    assert all(f"`{name}" in PAGE for name in REWARDS.names() if not name.startswith(("test-", "lab-", "col")))
