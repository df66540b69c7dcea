"""The operating point and the near-duplicates are computed once, and kept in the audit's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.suspects import Suspect
from memorization.auditing.models import AuditedModel
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings

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
