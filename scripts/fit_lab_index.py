"""Fit the index rules that ship for the lab, and say what they gain on prompts held out.

    python scripts/fit_lab_index.py [--json docs/figures/lab_index.json]

On the recorded rewards that ship (24 prompts each, none of them taught or compared on), as ``diffkit ttsnap fit lab
--key lab-noise-aware --rule index --budgets 2x,4x,6x,8x,12x,16x,32x`` does, and likewise for ``lab-trio``; two minutes.
The prompts that are held out together, five or four, share one budget.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from diffkit.runs.files import write_bytes_atomically
from ttsnap import assets
from ttsnap.evaluation.budget_curves import read_budgets
from ttsnap.fitting.index_check import fit_guarded
from ttsnap.trajectories.read import load_tensor

BUDGETS = "2x,4x,6x,8x,12x,16x,32x"


def main() -> None:
    """Write the rules and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = {}
    for name in assets.NAMES:
        rewards = load_tensor(name, f"{name}-noise-aware")
        prices = rewards.prices
        assert prices is not None
        book, held_out = fit_guarded(rewards, prices, read_budgets(BUDGETS, prices, rewards.calls))
        write_bytes_atomically(assets.FOLDER / name / assets.INDEX, (book.to_json() + "\n").encode())
        figures[name] = {"prompts": len(rewards.final), "rows": held_out.rows(book)}
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
