"""The records of an audit of any size without a model: a real run folder, real pictures, similarities drawn at random.

Of the suspects 2 % are replicated, 3 % come back under the attack, 1 % could not be scored. Every picture of the pool
belongs to many records.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from diffkit.lab import textures
from diffkit.runs import Run
from diffkit.suspects import RowError
from memorization.auditing.report import write_page
from memorization.auditing.result import AuditRecord, AuditSummary, read_records
from memorization.auditing.settings import AuditSettings
from memorization.auditing.summary import SUMMARY_SCHEMA, summarise_audit
from memorization.copies import OperatingPoint
from memorization.items import Role

SETTINGS = AuditSettings(
    budgets=(0, 10, 50), starts=("other",), generations=2, attack_generations=1, detectors=("noise_magnitude",)
)
POINT: OperatingPoint = {"detector": "tiled", "preprocessing": "none", "threshold": 0.75, "source": "stated"}


def open_run(folder: Path) -> Run:
    """The run of a synthetic audit, new or as it is."""
    return Run.open(folder, config={"settings": SETTINGS.to_json()}, kind="audit")


def write_items(
    run: Run, *, suspects: int, controls: int, size: int = 64, pool: int = 16, captions: Sequence[str] = ()
) -> None:
    """Write the journal and the pictures of an audit.

    Args:
        run: an open run.
        suspects: how many; ``controls`` likewise.
        size: side of the pictures in pixels.
        pool: how many pictures there are.
        captions: of the first suspects; the others have captions of their own.
    """
    images = textures.dead_leaves(pool, generator=torch.Generator().manual_seed(0), size=size)
    names = [run.save_image(f"pool-{index}", image) for index, image in enumerate(images)]
    draw = random.Random(0)
    for index in range(suspects + controls):
        role: Role = "suspect" if index < suspects else "control"
        number = index if role == "suspect" else index - suspects
        caption = captions[index] if index < len(captions) else f"photograph number {number} of a street in the rain"
        record = _record(role, f"{number:05d}", caption, names, draw)
        run.write(f"{role}:{record['id']}", record)


def _record(role: Role, name: str, caption: str, names: Sequence[str], draw: random.Random) -> AuditRecord:
    """One item; the fate of a suspect is drawn."""
    fate = draw.random() if role == "suspect" else 1.0
    by_caption = draw.gauss(0.92 if fate < 0.02 else 0.1, 0.02)
    attack = [by_caption, draw.gauss(0.3, 0.05), draw.gauss(0.93 if fate < 0.05 else 0.35, 0.03)]
    unscored = fate > 0.99 and role == "suspect"
    pictures = {part: draw.choice(names) for part in ("original", "caption", "dori-10", "dori-50")}
    return {
        "id": name, "role": role, "of": None, "edit": None, "prompt": caption, "kind": None,
        "reason": "the image is damaged" if unscored else None,
        "seeds": [draw.getrandbits(32), draw.getrandbits(32)],
        "ceiling": None if unscored else [0.98],
        "caption": None if unscored else [round(by_caption, 5), round(by_caption - 0.01, 5)],
        "detectors": {"noise_magnitude": {"value": round(draw.gauss(0, 1), 6), "scores": [0.0, 0.0], "reason": None}},
        "attack": None if unscored else {"dori": {"other": [[round(value, 5)] for value in attack]}},
        "best": {} if unscored else {
            "dori": {str(b): {"start": "other", "similarity": round(attack[2 if b > 10 else 1], 5)} for b in (10, 50)}
        },
        "mask": None, "sample_gradients": 400, "pictures": pictures,
    }  # fmt: skip


def write_report(run: Run, errors: Sequence[RowError] = ()) -> AuditSummary:
    """Write summary.json, the tables and the pages of a run as an audit does."""
    records = read_records(run.done)
    figures = summarise_audit(records, SETTINGS, operating_point=POINT, suspect_errors=errors)
    model = {
        "schema_version": SUMMARY_SCHEMA, "model": "synthetic", "model_sha256": None, "lora": None, "mitigation": None,
        "reference_model": None,
    }  # fmt: skip
    written = run.write_json("summary.json", {**model, **figures})
    summary = cast("AuditSummary", json.loads(written.read_text()))
    write_page(run, records, summary)
    return summary
