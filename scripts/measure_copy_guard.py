"""How often a copy of a planted picture wins a search on the lab, without and with a copy guard, and what that costs.

    python scripts/measure_copy_guard.py --json docs/figures/copy_guard.json

Captions of planted pictures, whole, every second word of them, and their first two words; the 24 planted pictures are
forbidden. Best of a few seeds without a guard shows which finished images are copies; the same seeds are then searched
with the guard and two looks. A copy reaches the operating point of the guard's detector.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from diffkit.copy_guard import CopyGuard, load_copy_guard
from diffkit.errors import ScoringError
from diffkit.stats import rate
from diffkit.suspects import read_suspects
from ttsnap import TTSnapPipeline

CANDIDATES, STEPS, SCHEDULE = 4, 20, "4:1.0,10:1.0"
REPEATS = {"whole": 2, "every second word": 1, "first two words": 2}


class Watching:
    """A guard that measures and forbids nothing."""

    name = "watching"

    def __init__(self, guard: CopyGuard) -> None:
        self.guard, self.flops_per_image = guard, guard.flops_per_image

    def check(self, images: torch.Tensor) -> list[Any]:
        """The similarities without a verdict."""
        return [check._replace(reason=None) for check in self.guard.check(images)]

    def card(self) -> dict[str, object]:
        """Nothing to record."""
        return {}


def words(caption: str, kind: str) -> str:
    """A caption, or a part of it."""
    parts = caption.split()
    return " ".join({"whole": parts, "every second word": parts[::2], "first two words": parts[:2]}[kind])


def searched(pipe: TTSnapPipeline, prompt: str, seed: int, guard: CopyGuard, schedule: str) -> dict[str, Any]:
    """One search: the winner, or that there is none, all finished images' similarities, and the cost."""
    began = time.perf_counter()
    options = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "num_candidates": CANDIDATES, "seed": seed}
    try:
        out = pipe(prompt, **options, schedule=schedule, copy_guard=guard)
    except ScoringError as error:
        return {"similarity": None, "reward": None, "reason": str(error), "seconds": time.perf_counter() - began}
    return {
        "similarity": out.similarities[0],
        "reward": out.rewards[0],
        "seed": out.seeds[0],
        "finished": dict(zip(out.trace[-1].candidates, out.trace[-1].similarities, strict=True)),
        "seconds": time.perf_counter() - began,
        "guard_seconds": out.ledger.seconds["guard"],
        "flop": out.ledger.to_dict()["flop"],
        "guard_flop": out.ledger.guard["checks"] * out.ledger.guard["flop_per_check"],
        "calls": out.ledger.calls,
    }


def summary(rows: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Counts with intervals, and the share of the cost that the guard takes where nothing is dropped."""
    n = len(rows)
    without = [row["without"] for row in rows]
    guarded = [row["guarded"] for row in rows]
    winners = [search for search in guarded if search["similarity"] is not None]
    mixed = [row for row in rows if len({value >= threshold for value in row["without"]["finished"].values()}) == 2]
    clean = [value < threshold for row in rows for value in row["without"]["finished"].values()]
    lost = [row for row in rows if row["guarded"]["similarity"] is None
            and any(value < threshold for value in row["without"]["finished"].values())]  # fmt: skip
    return {
        "searches": n,
        "copies_without": rate(sum(search["similarity"] >= threshold for search in without), n),
        "copies_guarded": rate(sum(search["similarity"] >= threshold for search in winners), n),
        "no_winner": n - len(winners),
        "no_winner_but_clean_images": len(lost),
        "mixed": len(mixed),
        "mixed_with_winner": sum(row["guarded"]["similarity"] is not None for row in mixed),
        "finished_without": len(clean),
        "clean_without": sum(clean),
        "seconds_without": sum(search["seconds"] - search["guard_seconds"] for search in without),
        "seconds_guarded": sum(search["seconds"] for search in guarded),
    }


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--limit", type=int, help="captions, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = TTSnapPipeline.from_pretrained("lab", reward="lab")
    pipe.set_progress_bar_config(disable=True)
    guard = load_copy_guard("lab:planted", pipe)
    captions = [suspect.caption for suspect in read_suspects("lab:planted")[0]][: arguments.limit]
    rows = []
    for kind, repeats in REPEATS.items():
        for caption in captions:
            for seed in range(repeats):
                prompt = words(caption, kind)
                watched = searched(pipe, prompt, seed, Watching(guard), "")
                row = {"kind": kind, "prompt": prompt, "without": watched}
                rows.append({**row, "guarded": searched(pipe, prompt, seed, guard, SCHEDULE)})
                print(kind, prompt, watched["similarity"], rows[-1]["guarded"]["similarity"], flush=True)
    threshold = float(guard.card()["threshold"])
    free = [row["guarded"] for row in rows if len(row["guarded"].get("finished", ())) == CANDIDATES]
    content = {
        "candidates": CANDIDATES, "steps": STEPS, "schedule": SCHEDULE, "guard": guard.card(),
        "groups": {kind: summary([row for row in rows if row["kind"] == kind], threshold) for kind in REPEATS},
        "all": summary(rows, threshold),
        "guard_share_of_flop": sum(r["guard_flop"] for r in free) / sum(r["flop"] for r in free) if free else None,
        "guard_share_of_seconds": sum(r["guard_seconds"] for r in free) / sum(r["seconds"] for r in free)
        if free else None,
        "undisturbed_searches": len(free),
    }  # fmt: skip
    content["guard"].pop("sha256")
    print(json.dumps(content, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
