"""What it changes to sample lab-trio from a lower noise: how many images are right, whether the same, and how early.

python scripts/measure_first_level.py [--captions 24] [--seeds 16] [--json docs/figures/first_level.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffkit.lab.measure import generate, scene_correct
from diffkit.lab.train.trio import FIRST_LEVEL, from_level
from diffkit.loading import load_pipeline
from diffkit.prompts import read_prompts
from diffkit.stats import bootstrap_mean
from diffkit.step_plan import plan

LOOK = 4.6  # noise over signal at the shipped schedule's first look


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(2)
    law = load_pipeline("lab").scheduler
    pipe = load_pipeline("lab-trio")
    captions = read_prompts("lab:trio", given.captions)
    texts = [caption for caption in captions for _ in range(given.seeds)]
    rows: list[dict[str, Any]] = []
    right = {}
    for level in (law.config.num_train_timesteps, FIRST_LEVEL):
        pipe.scheduler = from_level(law, level)
        sigmas = plan(pipe, 20).sigmas
        images = generate(pipe, texts, list(range(given.seeds)) * len(captions))
        right[level] = scene_correct(images, texts).view(len(captions), given.seeds).double()
        single = right[level].mean(1).tolist()
        calls = next(index + 1 for index, sigma in enumerate(sigmas) if sigma < LOOK)
        rows.append({
            "level": level, "noise": sigmas[0], "calls to the look": calls,
            "right": float(np.mean(single)), "interval": list(bootstrap_mean(single)),
        })  # fmt: skip
    both = float(torch.stack(list(right.values())).prod(0).sum())
    figures = {"n": len(captions), "seeds": given.seeds, "rows": rows, "right with both": both,
               "right with either": float(torch.stack(list(right.values())).amax(0).sum())}  # fmt: skip
    text = json.dumps(figures, indent=1)
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
