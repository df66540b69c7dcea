"""Best-of-N, pruning by the plain reward, TTSnap and lookahead at equal counted cost on held-out scenes of the lab.

    python scripts/measure_search.py [--searches best-of-n,lookahead] [--budgets 4x,16x] [--prompts 200]
                                     [--json docs/figures/search.json]
    python scripts/measure_search.py --model lab-trio [--budgets 16x] [--json docs/figures/search_trio.json]

Lookahead runs with its own schedule, and as ``lookahead-fitted`` with the one that ships for the model, such as
``lab-trio-lookahead``. Every budget is a run of ``diffkit ttsnap compare`` and one more for the fitted schedule; both
resume where they were cut. ``--only-read`` makes the table from what is in the folders.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffkit.runs.journal import read_journal
from ttsnap.evaluation.compare_report import summarise_searches

ROOT = Path(__file__).resolve().parents[1]
FITTED = "lookahead-fitted"
SEARCHES = f"best-of-n,ttsp,ttsnap,lookahead,{FITTED}"
WAYS = {
    "lab": ["--prompts", "lab:held-out", "--noise-aware", "lab-noise-aware"],
    "lab-trio": ["--prompts", "lab:trio", "--reward", "lab-trio", "--noise-aware", "lab-trio-noise-aware",
                 "--preview-vae", "lab", "--micro-batch", "16"],
}  # fmt: skip


def compare(model: str, searches: list[str], budget: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Run (or resume) the comparisons of one budget; returns a row a search, each beside best-of-N."""
    folder = given.out / f"{model}-{budget}"
    own = [name for name in searches if name != FITTED]
    parts = {folder: [",".join(own)]} if own else {}
    if FITTED in searches:
        parts[folder.with_name(f"{folder.name}-fitted")] = ["lookahead", "--lookahead-schedule", f"{model}-lookahead"]
    items: list[dict[str, Any]] = []
    for part, words in parts.items():
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(given.processes)]
        line += ["-m", "diffkit", "ttsnap", "compare", "--model", model, *WAYS[model], "--limit", str(given.prompts)]
        line += ["--budget", budget, "--schedule", model, "--out", str(part), "--searches", *words]
        if not given.only_read:
            subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        records = read_journal(part / "journal.jsonl").items.values()
        items += records if part == folder else [record | {"search": FITTED} for record in records]
    rows = summarise_searches([item for name in searches for item in items if item["search"] == name])
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=WAYS, default="lab")
    parser.add_argument("--searches", default=SEARCHES)
    parser.add_argument("--budgets", default="4x,16x")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--only-read", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    searches = given.searches.split(",")
    rows = {budget: compare(given.model, searches, budget, given) for budget in given.budgets.split(",")}
    text = json.dumps(rows, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
