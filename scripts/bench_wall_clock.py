"""Seconds at which pruned and lookahead searches on the lab reach the mean reward of best-of-N, against its seconds.

    python scripts/bench_wall_clock.py [--n 64] [--prompts 12] [--json docs/figures/wall_clock.json]
    python scripts/bench_wall_clock.py --model lab-trio --preview-vae lab --shares "" --ahead 0.25 --enough 0.97,0.98 \\
        --ahead-rounds 5 --threads 1 --prompts 16 --scenes 81 [--json docs/figures/wall_clock_ahead.json]
    python scripts/bench_wall_clock.py ... --first 64 --json part2.json    # the next 64 captions
    python scripts/bench_wall_clock.py --merge part1.json,part2.json [--json F]

One process, one machine, the searches of each prompt one after the other: TTSnap and lookahead at some shares of
best-of-N's cost, and with ``--enough`` in rounds that end once the winner's reward is enough, beside best-of-N in
rounds that end at the first of these rewards. Parts that were measured apart are joined by prompt. The file is
written after each caption.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit.lab import trio, world
from diffkit.stats import bootstrap_mean
from ttsnap import Rounds, TTSnapPipeline
from ttsnap.search.output import TTSnapPipelineOutput

CAPTIONS = {"lab": world.held_out_scenes, "lab-trio": trio.held_out_trios}
Runs = dict[str, list[tuple[float, float]]]


def search(pipe: TTSnapPipeline, caption: str, index: int, **options: Any) -> tuple[float, float]:
    """Reward of the winner, and seconds."""
    began = time.perf_counter()
    out = pipe(caption, num_inference_steps=20, guidance_scale=3.0, seed=11, first_prompt=index, **options)
    return cast(TTSnapPipelineOutput, out).rewards[0], time.perf_counter() - began


def ways(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name of a search -> its options; best-of-N first."""
    n, preview, pruned = given.n, {"preview_vae": given.preview_vae}, given.schedule or given.model
    ahead = f"{given.model}-lookahead"
    searches: dict[str, dict[str, Any]] = {f"best of {n}": {"num_candidates": n}}
    for name, shares, schedule in (("TTSnap", given.shares, pruned), ("lookahead", given.ahead, ahead)):
        for budget in (f"{float(share) * n:g}x" for share in shares.split(",") if share):
            searches[f"{name} {budget}"] = {"budget": budget, "schedule": schedule, **preview}
    enough = [float(reward) for reward in given.enough.split(",") if reward]
    for reward in enough:
        rounds = Rounds(reward, given.rounds, pruned)
        searches[f"TTSnap until {reward:g}"] = {"budget": f"{n}x", "search": rounds, **preview}
        for count in (int(count) for count in given.ahead_rounds.split(",") if count):
            rounds = Rounds(reward, count, ahead)
            searches[f"lookahead until {reward:g}, {n / count:g}x a round"] = {
                "budget": f"{n}x",
                "search": rounds,
                **preview,
            }
    for reward in enough[:1]:
        searches[f"best-of-N until {reward:g}"] = {"budget": f"{n}x", "search": Rounds(reward, given.rounds)}
    return searches


def measure(given: argparse.Namespace) -> Runs:
    """Reward and seconds of each search of each prompt."""
    pipe = TTSnapPipeline.from_pretrained(given.model, reward=f"{given.model}-noise-aware")
    pipe.set_progress_bar_config(disable=True)
    captions = [scene.caption for scene in CAPTIONS[given.model](given.first + given.prompts, seed=given.scenes)]
    searches = ways(given)
    search(pipe, captions[0], 0, num_candidates=2)  # warm up
    runs: Runs = {name: [] for name in searches}
    for index, caption in list(enumerate(captions))[given.first :]:
        for name, options in searches.items():
            runs[name].append(search(pipe, caption, index, micro_batch=given.micro_batch, **options))
        if given.json:
            given.json.write_text(json.dumps({"threads": given.threads, **figures(runs, given.preview_vae)}) + "\n")
    return runs


def share_interval(seconds: NDArray[np.float64], of: NDArray[np.float64]) -> list[float]:
    """95 % bootstrap interval, over prompts, of the share that the seconds of one search are of another's."""
    drawn = np.random.default_rng(0).integers(len(of), size=(2000, len(of)))
    return [float(end) for end in np.quantile(seconds[drawn].sum(1) / of[drawn].sum(1), [0.025, 0.975])]


def figures(runs: Runs, preview: str | None) -> dict[str, Any]:
    """A row for each search, each beside best-of-N."""
    best = np.array(next(iter(runs.values())))
    rows: list[dict[str, Any]] = []
    for name, pairs in runs.items():
        rewards, seconds = np.array(pairs).T
        gains = rewards - best[:, 0]
        row = {"way": name, "reward": float(rewards.mean()), "difference": float(gains.mean()),
               "interval": list(bootstrap_mean(gains)), "seconds": float(seconds.mean()),
               "share of time": float(seconds.sum() / best[:, 1].sum()),
               "interval of the share": share_interval(seconds, best[:, 1])}  # fmt: skip
        rows.append(row)
    reached = [row for row in rows[1:] if not row["way"].startswith("best") and row["difference"] >= 0]
    first = min(reached, key=lambda row: row["seconds"]) if reached else None
    return {"n": len(best), "preview decoder": preview, "rows": rows, "first to reach": first, "runs": runs}


def merged(parts: list[Path]) -> dict[str, Any]:
    """The figures of parts that were measured apart, with the same options."""
    measured = [json.loads(part.read_text()) for part in parts]
    runs = {name: [pair for part in measured for pair in part["runs"][name]] for name in measured[0]["runs"]}
    return figures(runs, measured[0]["preview decoder"])


def main() -> None:
    """Parse, measure or merge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CAPTIONS, default="lab")
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="index of the first caption")
    parser.add_argument("--scenes", type=int, default=77, help="seed that draws the captions")
    parser.add_argument("--shares", default="0.125,0.25,0.5", help="of best-of-N's counted cost, for TTSnap")
    parser.add_argument("--ahead", default="", help="likewise for lookahead")
    parser.add_argument("--enough", default="", help="rewards at which a search in rounds ends")
    parser.add_argument("--rounds", type=int, default=4, help="most rounds of a search that ends so")
    parser.add_argument("--ahead-rounds", default="4,8", help="likewise for lookahead")
    parser.add_argument("--schedule", help="of TTSnap, by name, file or written out; the model's own by default")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--preview-vae", help="decoder of the estimates, e.g. lab")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--merge", help="files of parts, separated by commas")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.merge:
        measured = merged([Path(part) for part in given.merge.split(",")])
    else:
        measured = {"threads": given.threads, **figures(measure(given), given.preview_vae)}
    print(json.dumps({name: value for name, value in measured.items() if name != "runs"}, indent=1))
    if given.json:
        given.json.write_text(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
