"""How well the lab's noise-aware reward, taught at 20 steps, ranks estimates of denoisings with other numbers of steps.

python scripts/measure_steps.py [--prompts 8] [--candidates 16] [--json docs/figures/steps.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffkit.loading import load_pipeline
from diffkit.prompts import read_prompts
from diffkit.rewards import load_reward
from diffkit.stats import bootstrap_mean
from diffkit.step_plan import plan
from ttsnap.alignment import kendall
from ttsnap.trajectories.collect import CollectSettings, collect
from ttsnap.trajectories.dataset import steps_near

AWARE, PLAIN = "lab-noise-aware", "lab"
LEVELS = (-8.2, -7.3, -6.5, -5.7, -5.0, -3.6)  # log-SNR of the steps 2, 3, 4, 5, 6 and 8 of 20
STEPS = (12, 20, 25, 50)


def measure(steps: int, prompts: int, candidates: int, out: Path) -> dict[str, Any]:
    """Mean tau with the final reward over the early levels, of both rewards, with intervals over prompts."""
    pipe = load_pipeline("lab")
    near = steps_near(plan(pipe, steps).sigmas, LEVELS)
    settings = CollectSettings(candidates, steps, 3.0, None, previews=False, record=near, seed=3)
    rewards = {name: load_reward(name) for name in (PLAIN, AWARE)}
    found = collect(pipe, read_prompts("lab:held-out", prompts), rewards, settings, out=out)
    row: dict[str, Any] = {"steps": steps, "looks": list(near), "n": prompts}
    for name in rewards:
        tensor = found.reward_tensor(name)
        tau = np.nanmean([kendall(tensor.looks[:, :, step], tensor.final) for step in near], axis=0)
        row[name] = {"mean": float(np.mean(tau)), "interval": list(bootstrap_mean(list(tau)))}
    return row


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/steps"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [measure(steps, given.prompts, given.candidates, given.out / str(steps)) for steps in STEPS]
    text = json.dumps(rows, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
