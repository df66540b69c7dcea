"""Similarities of an audit of the lab, without its pictures: what ``measure_evidence.py`` compares and resamples.

    from evidence_records import record_audit, read_items

A file of records holds the settings of the audit, and one line an item with its similarities by caption and by attack,
both on the audited model and, where there is one, on the reference model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffkit.lab import planted
from diffkit.runs.journal import read_journal

Group = Literal["planted", "never planted", "control"]
SETTINGS = (
    "attacks", "budgets", "starts", "generations", "attack_generations", "num_inference_steps", "guidance_scale",
    "alpha", "correction", "copies",
)  # fmt: skip
THRESHOLD = 0.75  # of the copy detector "tiled", where the audit has no summary yet


@dataclass(frozen=True)
class Item:
    """One suspect or control.

    Attributes:
        id: of the suspect or control.
        group: planted, never planted or control.
        kind: of the image: "verbatim" and "template" are planted; "control" are photographs, "scene" drawn scenes.
        strength: of a planted image: "full", "medium", "weak".
        caption: similarity of each image generated from the caption.
        looks: for each budget, the similarity of each image generated from the trigger.
        reference: the looks of the same attack on the reference model; None where it was not attacked there.
        noise: score of the noise magnitude detector.
        gradients: sample gradients of the attack.
    """

    id: str
    group: Group
    kind: str
    strength: str | None
    caption: list[float]
    looks: list[list[float]]
    reference: list[list[float]] | None
    noise: float | None
    gradients: int


Journal = Mapping[str, Mapping[str, Any]]


def extract(records: Journal, attack: str, start: str) -> list[Item]:
    """The items of an audit's journal under one attack from one start; those that could not be scored are left out."""
    strengths = {entry.name: entry.strength for entry in planted.planted()}
    by_key = {(record["role"], record["id"]): record for record in records.values() if record["attack"]}
    items = []
    for (role, name), record in by_key.items():
        if role not in ("suspect", "control"):
            continue
        group: Group = "control" if role == "control" else "planted" if name in strengths else "never planted"
        reference = by_key.get(("reference" if role == "suspect" else "reference_control", name))
        items.append(
            Item(
                name,
                group,
                record["kind"] or "controls",
                strengths[name] if group == "planted" else None,
                record["caption"],
                record["attack"][attack][start],
                reference["attack"][attack][start] if reference else None,
                record["detectors"].get("noise_magnitude", {}).get("value"),
                record["sample_gradients"],
            )
        )
    return sorted(items, key=lambda item: (item.group, item.kind, item.id))


def record_audit(run: Path, out: Path) -> None:
    """Write the records of an audit's folder; the folders themselves are only read."""
    config = json.loads((run / "run.json").read_text())["config"]
    settings = config["settings"]
    if len(settings["attacks"]) != 1 or len(settings["starts"]) != 1:
        raise SystemExit("expected an audit with one attack and one start")
    journal = read_journal(run / "journal.jsonl").items
    items = extract(journal, settings["attacks"][0], settings["starts"][0])
    summary = run / "summary.json"
    threshold = json.loads(summary.read_text())["operating_point"]["threshold"] if summary.is_file() else THRESHOLD
    head = {
        "model": config["model"],
        "mitigation": (config["mitigation"] or {}).get("method"),
        "reference": (config["reference"] or {}).get("model"),
        "threshold": threshold,
        "settings": {name: settings[name] for name in SETTINGS},
    }
    lines = ",\n".join(json.dumps(vars(item), separators=(",", ":")) for item in items)
    out.write_text(json.dumps(head, indent=1)[:-2] + f',\n "items": [\n{lines}\n]\n}}\n')


def read_items(path: Path) -> tuple[dict[str, Any], list[Item]]:
    """Settings, threshold and so on; and the items."""
    head = json.loads(path.read_text())
    return head, [Item(**item) for item in head.pop("items")]
