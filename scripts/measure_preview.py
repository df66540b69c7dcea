"""Looks through the lab's preview decoder against looks through its full one: rank agreement and cost.

    python scripts/measure_preview.py [--prompts 12] [--candidates 16] [--json docs/figures/preview.json]

The same candidates are collected twice with the same seeds; only the decoder of the estimates differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from diffkit.stats import bootstrap_mean
from ttsnap.alignment import kendall
from ttsnap.trajectories.dataset import Trajectories

ROOT = Path(__file__).resolve().parents[1]
REWARD = "lab-noise-aware"
STEPS = "2,4,6,8,10"


def collect(out: Path, prompts: int, candidates: int, *more: str) -> Trajectories:
    """Run (or resume) one collection."""
    line = [sys.executable, "-m", "diffkit", "ttsnap", "collect", "--prompts", "lab:held-out", "--limit", str(prompts)]
    line += ["--candidates", str(candidates), "--record", STEPS, "--rewards", REWARD, "--no-previews"]
    subprocess.run([*line, *more, "--out", str(out)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return Trajectories.open(out)


def mean(values: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Mean over prompts with its 95 % interval."""
    known = values[np.isfinite(values)]
    low, high = bootstrap_mean(list(known))
    return {"mean": float(known.mean()), "low": low, "high": high, "n": len(known)}


def main() -> None:
    """Parse, collect, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/preview"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    size = (given.prompts, given.candidates)
    full = collect(given.out / "full", *size)
    tiny = collect(given.out / "tiny", *size, "--preview-vae", "lab")
    a, b = full.reward_tensor(REWARD), tiny.reward_tensor(REWARD)
    steps = [
        {
            "step": step,
            "tau of full and preview": mean(kendall(a.looks[:, :, step], b.looks[:, :, step])),
            "tau to the final, full": mean(kendall(a.looks[:, :, step], a.final)),
            "tau to the final, preview": mean(kendall(b.looks[:, :, step], a.final)),
        }
        for step in full.steps
    ]
    prices = tiny.prices(REWARD)
    decode, preview, verify, call = (float(p or 0) for p in (prices.decode, prices.preview, prices.verify, prices.call))
    found = {
        "steps": steps,
        "look in denoiser calls": {"full": (decode + verify) / call, "preview": (preview + verify) / call},
        "GFLOP of a decoding": {"full": decode / 1e9, "preview": preview / 1e9},
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
