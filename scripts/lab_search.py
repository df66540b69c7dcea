"""From an empty folder to a served pipeline on the lab: collect, distill, rescore, fit, simulate, compare; each timed.

    python scripts/lab_search.py [--out runs/lab_search] [--processes 2] [--json docs/figures/lab_search.json]

Smaller than what made the shipped reward and schedule, so that it takes minutes. Resumes where it was cut; times are
those of the last run of each command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from diffkit.prompts import read_prompts
from ttsnap import TTSnapPipeline
from ttsnap.noise_aware.reward import NoiseAwareReward

ROOT = Path(__file__).resolve().parents[1]


def commands(out: Path) -> dict[str, tuple[bool, list[str]]]:
    """Name -> whether several processes share it, and its arguments."""
    train, pool, rewards, schedule = (str(out / name) for name in ("train", "pool", "pool.npz", "schedule.json"))
    model = str(out / "distilled" / "model")
    return {
        "collect for training": (True, ["collect", "--prompts", "lab:train", "--limit", "160", "--candidates", "6",
                                        "--record", "1,2,3,4,5,6,8,10,12,14", "--out", train]),
        "distill": (False, ["distill", train, "--steps-per-stage", "80", "--out", str(out / "distilled")]),
        "collect for fitting": (True, ["collect", "--prompts", str(out / "pool.txt"), "--candidates", "40",
                                       "--seed", "5", "--record", "1,2,3,4,5,6,7,8,9,10,12,14", "--out", pool]),
        "rescore": (False, ["rescore", pool, "--reward", model, "--out", rewards]),
        "fit": (False, ["fit", rewards, "--key", "lab-noise-aware", "--budgets", "2x,4x,8x,12x", "--out", schedule]),
        "simulate": (False, ["simulate", rewards, "--key", "lab-noise-aware", "--schedule", schedule,
                             "--budgets", "2x:12x:2x", "--format", "json"]),
        "compare": (True, ["compare", "--prompts", "lab:held-out", "--limit", "24", "--budget", "4x", "--searches",
                           "best-of-n,ttsp,ttsnap", "--noise-aware", model, "--schedule", schedule,
                           "--out", str(out / "compare")]),
    }  # fmt: skip


def main() -> None:
    """Run all, time each, serve one prompt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/lab_search"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    pool = read_prompts("lab:held-out", 324)[-12:]
    (given.out / "pool.txt").write_text("\n".join(pool) + "\n")
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(given.processes)]
    seconds = {}
    for name, (shared, line) in commands(given.out.resolve()).items():
        began = time.monotonic()
        start = [sys.executable, *(several if shared and given.processes > 1 else [])]
        subprocess.run([*start, "-m", "diffkit", "ttsnap", *line], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        seconds[name] = round(time.monotonic() - began, 1)
    began = time.monotonic()
    reward = NoiseAwareReward.from_pretrained(given.out / "distilled" / "model")
    pipe = TTSnapPipeline.from_pretrained("lab", reward=reward)
    schedule = given.out / "schedule.json"
    pipe("a red circle left of a blue square on gray", num_inference_steps=20, budget="4x", schedule=schedule, seed=7)
    seconds["serve one prompt"] = round(time.monotonic() - began, 1)
    card = json.loads((given.out / "distilled" / "summary.json").read_text())
    figures = {
        "seconds": seconds,
        "minutes in all": round(sum(seconds.values()) / 60, 1),
        "tau": [{name: level[name] for name in ("step", "before", "after")} for level in card["tau"]],
        "compare": json.loads((given.out / "compare" / "summary.json").read_text()),
    }
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
