"""Best-of-16 against pruned search at equal counted cost on many held-out scenes, with intervals.

python scripts/measure_search.py [--prompts 48] [--json figures.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffkit import stats
from diffkit.lab.world import held_out_scenes
from ttsnap.demo import compare


def summarise(outcomes: list[Any]) -> dict[str, Any]:
    """Means over prompts; the judged accuracy with its exact interval."""
    right = sum(o.correct for o in outcomes)
    low, high = stats.clopper_pearson(right, len(outcomes))
    return {
        "seeds": float(np.mean([o.seeds for o in outcomes])),
        "TFLOP a prompt": float(np.mean([o.tflop for o in outcomes])),
        "reward": float(np.mean([o.reward for o in outcomes])),
        "right": right / len(outcomes),
        "n": len(outcomes),
        "low": low,
        "high": high,
        "seconds a prompt": float(np.mean([o.seconds for o in outcomes])),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    captions = [scene.caption for scene in held_out_scenes(arguments.prompts, seed=41)]
    found = compare(captions)
    figures: dict[str, Any] = {name: summarise(outcomes) for name, outcomes in found.items()}
    single, *_, pruned = found.values()
    best = found["best of 16"]
    gain = [b.reward - a.reward for a, b in zip(best, pruned, strict=True)]
    figures["reward, pruned minus best of 16"] = {
        "mean": float(np.mean(gain)),
        "n": len(gain),
        **stats.bootstrap_mean(gain)._asdict(),
    }
    figures["points over one seed, best of 16"] = (
        100 * (sum(o.correct for o in best) - sum(o.correct for o in single)) / len(best)
    )
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
