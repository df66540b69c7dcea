"""Write JSON schemas (draft 2020-12) of journal records and summaries into docs/schemas, from the declared types.

python scripts/json_schemas.py            # rewrite
python scripts/json_schemas.py --check    # exit 1 when one is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import is_typeddict

import diffkit.stats
import memorization.auditing.result
import memorization.auditing.trend_result
import memorization.auditing.verification
import memorization.comparison.result
import memorization.copies
import memorization.detection.result
import memorization.quality.result
from memorization.auditing.result import AuditRecord, AuditSummary
from memorization.auditing.trend_result import Trend
from memorization.auditing.verification import Verification
from memorization.comparison.result import Comparison
from memorization.detection.result import DetectRecord, DetectSummary

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODULES = (
    diffkit.stats,
    memorization.copies,
    memorization.auditing.result,
    memorization.auditing.trend_result,
    memorization.auditing.verification,
    memorization.detection.result,
    memorization.quality.result,
    memorization.comparison.result,
)
for module in MODULES:
    for declared in vars(module).values():
        if is_typeddict(declared):
            declared.__pydantic_config__ = {"extra": "forbid"}  # a key that is not declared is an error

#: By name of the schema: a record is an ``item`` of journal.jsonl, a summary the content of summary.json.
ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "audit-record": TypeAdapter(AuditRecord),
    "audit-summary": TypeAdapter(AuditSummary),
    "audit-trend-summary": TypeAdapter(Trend),
    "audit-verify": TypeAdapter(Verification),
    "audit-compare-summary": TypeAdapter(Comparison),
    "detect-record": TypeAdapter(DetectRecord),
    "detect-summary": TypeAdapter(DetectSummary),
}


def schema_text(name: str) -> str:
    """A schema as it is written."""
    return json.dumps({"$schema": DIALECT, **ADAPTERS[name].json_schema()}, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    FOLDER.mkdir(exist_ok=True)
    for name in ADAPTERS:
        path, text = FOLDER / f"{name}.json", schema_text(name)
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"docs/schemas/{path.name} is out of date: run 'python scripts/json_schemas.py'")


if __name__ == "__main__":
    main()
