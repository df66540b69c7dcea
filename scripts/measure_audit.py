"""Audit the lab and its clean twin with the default settings, and say how far the verdicts are right.

    python scripts/measure_audit.py [--out runs/measure] [--json figures.json]

The lab's truths are known: which images were planted and how often, and that no control was. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffkit.lab import planted
from diffkit.stats import clopper_pearson

ROOT = Path(__file__).resolve().parents[1]


def audit(model: str, out: Path) -> dict[str, Any]:
    """Run (or resume) the audit; returns its summary and the seconds it took."""
    line = [sys.executable, "-m", "diffkit", "audit", "--model", model, "--out", str(out)]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


def by_strength(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Verdicts of the planted images, by kind and strength."""
    entries = {p.name: p for p in planted.planted()}
    table: dict[str, dict[str, Any]] = {}
    for finding in summary["findings"]:
        entry = entries[finding["key"].split(":")[-1].removesuffix(".png")]
        row = table.setdefault(f"{entry.kind}, {entry.strength}", {"n": 0})
        row["n"] += 1
        row[finding["verdict"]] = row.get(finding["verdict"], 0) + 1
    return dict(sorted(table.items()))


def share(k: int, n: int) -> dict[str, Any]:
    """k of n with its exact 95 % interval."""
    low, high = clopper_pearson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def figures(lab: dict[str, Any], clean: dict[str, Any]) -> dict[str, Any]:
    """The points that matter."""
    table = by_strength(lab)
    full = table["verbatim, full"]
    found = [clean["verdicts"][name] for name in ("replicated", "retained")]
    return {
        "lab: full-strength verbatim replicated": share(full.get("replicated", 0), full["n"]),
        "lab: controls flagged": lab["controls"]["flagged"],
        "lab: verdicts": lab["verdicts"],
        "lab: verdicts by kind and strength": table,
        "lab: pre-set budget": lab["budget"],
        "lab: threshold": lab["operating_point"]["threshold"],
        "lab: attack by budget": [
            {key: row[key] for key in ("budget", "suspect_median", "control_median", "auc")}
            | {"suspects": row["suspects"], "controls": row["controls"]}
            for row in lab["attack"]
        ],
        "lab: noise magnitude AUC": lab["detectors"]["noise_magnitude"],
        "lab-clean: replicated or retained": share(sum(found), clean["suspects"]),
        "lab-clean: verdicts": clean["verdicts"],
        "lab-clean: controls flagged": clean["controls"]["flagged"],
        "lab-clean: pre-set budget": clean["budget"],
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/measure"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(figures(*(audit(model, options.out / model) for model in ("lab", "lab-clean"))), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
