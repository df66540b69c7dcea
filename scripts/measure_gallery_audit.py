"""An audit of few memories among many on the gallery under NeMo: what is `retained`, by strength, and what wrongly.

    python scripts/measure_gallery_audit.py --mitigation runs/replication/nemo-together [--out runs/gallery-audit]
        [--json docs/figures/gallery_audit.json]

Suspects: the 64 verbatim plants and 100 claims, none of which was in a training set, in random order; controls: the
gallery's 120. The mitigation is the one that ``measure_replication.py`` makes.
The audit goes on where it was cut.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from diffkit.stats import rate
from diffkit.suspects import Suspect, read_suspects

SETTINGS = {
    "--budgets": "0,10,25,50", "--starts": "gaussian", "--generations": "3", "--attack-generations": "3",
    "--steps": "20", "--batch": "16", "--controls": "gallery:controls",
}  # fmt: skip
CLAIMS = 100  # of the gallery's 200
SHOWN = ("retained", "replicated")


def suspects() -> list[Suspect]:
    """Verbatim plants and claims, in random order."""
    plants = [suspect for suspect in read_suspects("gallery:planted")[0] if suspect.kind == "verbatim"]
    mixed = [*plants, *read_suspects("gallery:claims")[0][:CLAIMS]]
    random.Random(0).shuffle(mixed)
    return mixed


def write_list(path: Path, mixed: Sequence[Suspect]) -> None:
    """The suspects as a list that the audit reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": suspect.id, "caption": suspect.caption, "image": str(suspect.images[0]), **suspect.extra}
        for suspect in mixed
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def audit(folder: Path, listed: Path, mitigation: Path) -> dict[str, Any]:
    """The audit's summary."""
    if not (folder / "summary.json").is_file():
        words = SETTINGS | {"--model": "gallery", "--mitigation": str(mitigation), "--suspects": str(listed)}
        subprocess.run(
            [sys.executable, "-m", "diffkit", "audit", "--out", str(folder), *chain(*words.items())], check=True
        )
    return dict(json.loads((folder / "summary.json").read_text()))


def figures(summary: dict[str, Any], mixed: Sequence[Suspect]) -> dict[str, Any]:
    """What the docs show."""
    strengths = {suspect.id: str(suspect.extra["strength"]) for suspect in mixed}
    verdicts: dict[str, list[str]] = defaultdict(list)
    for finding in summary["findings"]:
        strength = strengths[finding["key"].removeprefix("suspect:")]
        verdicts["claimed" if strength == "none" else strength].append(finding["verdict"])
    planted = [verdict for name, row in verdicts.items() if name != "claimed" for verdict in row]
    return {
        "settings": SETTINGS,
        "budget": summary["budget"],
        "threshold": summary["operating_point"]["threshold"],
        "verdicts": {name: dict(Counter(row)) for name, row in verdicts.items()},
        "planted, retained or replicated": rate(sum(v in SHOWN for v in planted), len(planted)),
        "claimed, retained or replicated": rate(sum(v in SHOWN for v in verdicts["claimed"]), len(verdicts["claimed"])),
        "controls": summary["controls"],
        "attack": summary["attack"],
        "cost": summary["cost"],
    }


def main() -> None:
    """Parse, audit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mitigation", type=Path, default=Path("runs/replication/nemo-together"))
    parser.add_argument("--out", type=Path, default=Path("runs/gallery-audit"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    mixed = suspects()
    write_list(options.out / "suspects.jsonl", mixed)
    summary = audit(options.out / "run", options.out / "suspects.jsonl", options.mitigation)
    text = json.dumps(figures(summary, mixed), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
