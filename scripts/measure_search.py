"""Best-of-N, pruning by the plain reward, TTSnap and lookahead at equal counted cost on held-out scenes of the lab.

    python scripts/measure_search.py [--searches best-of-n,lookahead] [--budgets 4x,16x] [--prompts 200]
                                     [--json docs/figures/search.json]
    python scripts/measure_search.py --model lab-trio [--budgets 16x] [--json docs/figures/search_trio.json]

Every budget is one run of ``diffkit ttsnap compare``; it resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SEARCHES = "best-of-n,ttsp,ttsnap,lookahead"
WAYS = {
    "lab": ["--prompts", "lab:held-out", "--noise-aware", "lab-noise-aware"],
    "lab-trio": ["--prompts", "lab:trio", "--reward", "lab-trio", "--noise-aware", "lab-trio-noise-aware",
                 "--preview-vae", "lab", "--micro-batch", "16"],
}  # fmt: skip


def compare(model: str, searches: str, budget: str, prompts: int, processes: int, out: Path) -> list[dict[str, Any]]:
    """Run (or resume) one comparison; returns a row a search."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    line += ["-m", "diffkit", "ttsnap", "compare", "--model", model, *WAYS[model], "--limit", str(prompts)]
    line += ["--searches", searches, "--budget", budget, "--schedule", model, "--out", str(out)]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows: list[dict[str, Any]] = json.loads((out / "summary.json").read_text())
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
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {
        budget: compare(
            given.model, given.searches, budget, given.prompts, given.processes, given.out / f"{given.model}-{budget}"
        )
        for budget in given.budgets.split(",")
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
