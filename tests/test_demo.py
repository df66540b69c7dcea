"""The audit's part of the demonstration: the table and the sentence above it, by hand-made similarities; the mask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffkit.lab import assets, planted
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import load_mitigation, mitigation_folder, save_mitigation
from memorization import demo
from memorization.auditing.result import AuditRecord, AuditSummary
from memorization.auditing.summary import SUMMARY_SCHEMA, summarise_audit
from memorization.copies import OperatingPoint
from memorization.items import Role
from memorization.presets import LAB

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures" / "mitigations.json"
POINT: OperatingPoint = {"detector": "tiled", "preprocessing": "none", "threshold": 0.75, "source": "stated"}
SETTINGS = demo.settings((0, 15, 30))


def record(role: Role, index: int, caption: float, attack: float) -> AuditRecord:
    curve = [[0.0], [attack / 2], [attack]]
    return {
        "id": f"{index:02d}", "role": role, "of": f"suspect:{index:02d}" if role == "reference" else None,
        "edit": None, "prompt": "", "kind": None, "reason": None, "seeds": [1], "ceiling": [0.98], "caption": [caption],
        "detectors": {}, "attack": {"dori": {"gaussian": curve}}, "best": {}, "mask": None, "sample_gradients": 0,
        "pictures": {},
    }  # fmt: skip


def summary(items: list[AuditRecord]) -> AuditSummary:
    records = {f"{item['role']}:{item['id']}": item for item in items}
    used = {"schema_version": SUMMARY_SCHEMA, "model": "lab", "model_sha256": None, "lora": None, "mitigation": None}
    return {**used, "reference_model": None, **summarise_audit(records, SETTINGS, operating_point=POINT)}


def hidden() -> list[AuditRecord]:
    """Eight suspects under a mask: one given by its caption, six by the attack, one by neither; 20 controls."""
    suspects = [record("suspect", i, 0.9 if i == 0 else 0.2, 0.5 if i == 7 else 0.92) for i in range(8)]
    controls = [record("control", i, 0.1 + i % 5 / 50, 0.2 + i / 100) for i in range(20)]
    twin = [record("reference", i, 0.1, 0.8 if i == 6 else 0.2) for i in range(1, 7)]
    return [*suspects, *controls, *twin]


def test_the_table_counts_suspects_controls_and_what_the_twin_gives() -> None:
    before = summary([record("suspect", i, 0.95, 0.5) for i in range(8)])
    rows = demo.rows(before, summary(hidden()))
    assert all(len(row) == len(demo.HEADERS) for row in rows)
    assert [list(row[2:]) for row in rows] == [
        [8, 8, 0, 0, 0],
        [8, 1, 5, 1, 1],  # what the twin gives too is no finding
        [20, 0, 0, 20, 0],
        [6, 0, 1, 5, 0],
    ]


def test_the_sentence_above_the_table_states_the_numbers_of_the_run() -> None:
    title = demo.title(summary([record("suspect", i, 0.95, 0.5) for i in range(8)]), summary(hidden()))
    assert "captions give 8 of 8 planted images; under a NeMo mask 1, but an attack brings 5 back" in title
    assert "0 of 20 controls, and 1 of 6 planted images from a twin" in title


def test_the_shipped_mask_is_the_one_that_was_measured() -> None:
    mask = load_mitigation("lab-nemo")
    full = [photograph.name for photograph in planted.planted() if photograph.kind == "verbatim"][: demo.SUSPECTS]
    assert {photograph.strength for photograph in planted.PHOTOGRAPHS if photograph.name in full} == {"full"}
    assert (mask.method, mask.kind, list(mask.suspects)) == ("nemo", "mask", full)
    assert mask.model_sha256 == model_checksum("lab"), "run the command in diffkit/lab/data/lab-nemo/README.md"
    assert {name: mask.settings[name] for name in LAB.methods["nemo"]} == LAB.methods["nemo"]
    measured = json.loads(FIGURES.read_text())["best nemo"]["figures"]
    assert {name: mask.figures[name] for name in measured} == measured
    assert load_pipeline("lab", mitigation="lab-nemo") is not None


def test_a_folder_of_the_same_name_goes_before_the_shipped_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mitigation_folder("lab-nemo") == assets.mitigation_path("lab-nemo")
    save_mitigation("lab-nemo", load_mitigation("lab-nemo"))
    assert mitigation_folder(Path("lab-nemo")) == Path("lab-nemo")
