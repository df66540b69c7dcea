"""Validation of a run's files against the declared types, whose JSON schemas are in docs/schemas."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from json_schemas import ADAPTERS


def validate_run(folder: Path, kind: str) -> None:
    """Every record of the journal and the summary: no key undeclared or missing, no value of another type."""
    ADAPTERS[f"{kind}-summary"].validate_json((folder / "summary.json").read_bytes(), strict=True)
    if f"{kind}-record" in ADAPTERS:
        for line in (folder / "journal.jsonl").read_text().splitlines():
            validate(f"{kind}-record", json.loads(line)["item"])


def validate(name: str, value: Any) -> None:
    """One value, as it would be read back."""
    ADAPTERS[name].validate_json(json.dumps(value), strict=True)
