"""Seconds at which TTSnap on the lab reaches the mean reward of best-of-N, against best-of-N's own seconds.

    python scripts/bench_wall_clock.py [--n 64] [--prompts 12] [--json docs/figures/wall_clock.json]
    python scripts/bench_wall_clock.py --model lab-trio --preview-vae lab --shares 0.5 --enough 0.97 \\
        --prompts 64 --scenes 81 [--json docs/figures/wall_clock_trio.json]

One process, one machine, the searches of each prompt one after the other; TTSnap at some shares of best-of-N's cost,
and with ``--enough`` in rounds that end once the winner's reward is enough, beside best-of-N in rounds that end
at the first of these rewards.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from diffkit.lab import trio, world
from diffkit.stats import bootstrap_mean
from ttsnap import Rounds, TTSnapPipeline
from ttsnap.pipeline import TTSnapPipelineOutput

CAPTIONS = {"lab": world.held_out_scenes, "lab-trio": trio.held_out_trios}


def search(pipe: TTSnapPipeline, caption: str, index: int, **options: Any) -> tuple[float, float]:
    """Reward of the winner, and seconds."""
    began = time.perf_counter()
    out = pipe(caption, num_inference_steps=20, guidance_scale=3.0, seed=11, first_prompt=index, **options)
    return cast(TTSnapPipelineOutput, out).rewards[0], time.perf_counter() - began


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CAPTIONS, default="lab")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=77, help="seed that draws the captions")
    parser.add_argument("--shares", default="0.125,0.25,0.5", help="of best-of-N's counted cost")
    parser.add_argument("--enough", default="", help="rewards at which a search in rounds ends")
    parser.add_argument("--rounds", type=int, default=4, help="most rounds of a search that ends so")
    parser.add_argument("--schedule", help="of TTSnap, by name, file or written out; the model's own by default")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--preview-vae", help="decoder of the estimates, e.g. lab")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    pipe = TTSnapPipeline.from_pretrained(given.model, reward=f"{given.model}-noise-aware")
    pipe.set_progress_bar_config(disable=True)
    captions = [scene.caption for scene in CAPTIONS[given.model](given.prompts, seed=given.scenes)]
    schedule = given.schedule or given.model
    ways: dict[str, dict[str, Any]] = {f"best of {given.n}": {"num_candidates": given.n}}
    for budget in (f"{float(share) * given.n:g}x" for share in given.shares.split(",")):
        ways[f"TTSnap {budget}"] = {"budget": budget, "schedule": schedule, "preview_vae": given.preview_vae}
    enough = [float(reward) for reward in given.enough.split(",") if reward]
    for reward in enough:
        rounds = Rounds(reward, given.rounds, schedule)
        ways[f"TTSnap until {reward:g}"] = {"budget": f"{given.n}x", "search": rounds, "preview_vae": given.preview_vae}
    for reward in enough[:1]:
        ways[f"best-of-N until {reward:g}"] = {"budget": f"{given.n}x", "search": Rounds(reward, given.rounds)}
    search(pipe, captions[0], 0, num_candidates=2)  # warm up
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for index, caption in enumerate(captions):
        for name, options in ways.items():
            found[name].append(search(pipe, caption, index, micro_batch=given.micro_batch, **options))
    best = next(iter(found.values()))
    seconds = float(np.mean([s for _, s in best]))
    rows = []
    for name, runs in found.items():
        gains = [r - b for (r, _), (b, _) in zip(runs, best, strict=True)]
        took = float(np.mean([s for _, s in runs]))
        rows.append(
            {
                "way": name,
                "reward": float(np.mean([r for r, _ in runs])),
                "difference": float(np.mean(gains)),
                "interval": list(bootstrap_mean(gains)),
                "seconds": took,
                "share of time": took / seconds,
            }
        )
    reached = [row for row in rows if "TTSnap" in str(row["way"]) and row["difference"] >= 0]
    figures = {"n": given.prompts, "preview decoder": given.preview_vae, "rows": rows,
               "first to reach": min(reached, key=lambda row: row["seconds"]) if reached else None}  # fmt: skip
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
