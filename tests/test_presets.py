"""The lab's defaults are a preset: chosen by name, recorded, and the same for runs that recorded none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.images import save_png
from diffkit.lab import textures
from diffkit.suspects import Suspect
from memorization import AuditSettings, audit
from memorization.auditing.models import AuditedModel
from memorization.presets import LAB, NONE, PresetName, choose_preset, recorded_preset

DATA = Path(__file__).parent / "data" / "v0_1_0"
SETTINGS = AuditSettings(
    budgets=(0, 1), starts=("other",), generations=1, attack_generations=1, num_inference_steps=2, draws=1, detectors=()
)


@pytest.mark.parametrize(
    ("preset", "model", "chosen"),
    [
        ("auto", "lab", "lab"),
        ("auto", "lab-clean", "lab"),
        ("auto", "lab-trio@main", "lab"),
        ("auto", "gallery", "gallery"),
        ("auto", "gallery-clean", "gallery"),
        ("auto", "somebody/model", "none"),
        ("auto", "./lab", "none"),
        ("none", "lab", "none"),
        ("lab", "somebody/model", "lab"),
        ("gallery", "./runs/gallery/gallery", "gallery"),
    ],
)
def test_the_name_decides_only_by_default(preset: PresetName, model: str, chosen: str) -> None:
    assert choose_preset(preset, model).name == chosen
    record = {"config": {"model": model}, "provenance": {} if preset == "auto" else {"preset": preset}}
    assert recorded_preset(record).name == chosen


def test_a_run_of_0_1_0_has_the_preset_of_its_model() -> None:
    record = json.loads((DATA / "audit" / "run.json").read_text())
    assert "preset" not in record["provenance"]
    assert recorded_preset(record) is choose_preset("auto", record["config"]["model"])


def test_an_audit_takes_the_preset_s_captions_and_records_it(tmp_path: Path) -> None:
    save_png(textures.dead_leaves(1, generator=torch.Generator().manual_seed(1))[0], tmp_path / "dog.png")
    suspects = [Suspect("dog", "a dog", (tmp_path / "dog.png",))]
    tiny = AuditedModel("tiny", tiny_pipeline)

    def record(name: str) -> dict[str, dict[str, object]]:
        return json.loads((tmp_path / name / "run.json").read_text())

    audit(tiny, suspects, out=tmp_path / "lab", settings=SETTINGS, preset="lab")
    assert record("lab")["provenance"]["preset"] == "lab"
    assert LAB.other_captions is not None
    assert record("lab")["config"]["settings"]["other_captions"] == list(LAB.other_captions())  # type: ignore[index]
    with pytest.raises(InputError, match="other_captions"):  # another preset is another audit
        audit(tiny, suspects, out=tmp_path / "lab", settings=SETTINGS)
    audit(tiny, suspects, out=tmp_path / "none", settings=SETTINGS)
    assert (record("none")["provenance"]["preset"], NONE.other_captions) == ("none", None)
    own = replace(SETTINGS, other_captions=("a cat",))
    audit(tiny, suspects, out=tmp_path / "own", settings=own, preset="lab")  # captions that are given stay
    assert record("own")["config"]["settings"]["other_captions"] == ["a cat"]  # type: ignore[index]
