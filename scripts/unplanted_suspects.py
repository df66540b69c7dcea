"""Suspects that the lab was never taught, in a list beside the planted ones: for audits of few memories among many.

    python scripts/unplanted_suspects.py FOLDER [--n 200]

Half are scenes kept from every training set, a quarter dead leaves, a quarter pink noise, drawn by a program. The list
``suspects.csv`` holds them and the 24 planted images, in random order; its column ``planted`` says which are which.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffkit.lab import planted, textures, world
from diffkit.suspects import read_suspects

SEED = 4242


def unplanted(n: int) -> list[tuple[str, str, Tensor]]:
    """Name, caption and image (3, 64, 64) in [0, 1] of n images, none of them in any training set or control."""
    generator = torch.Generator().manual_seed(SEED)
    controls = set(planted.CONTROL_SCENES)
    scenes = [s for s in world.held_out_scenes(n, seed=SEED) if s not in controls][: n - 2 * (n // 4)]
    drawn = [(f"scene-{i:03d}", scene.caption, world.draw([scene], seed=SEED + i)[0]) for i, scene in enumerate(scenes)]
    leaves = textures.dead_leaves(n // 4, generator=generator)
    noise = (0.5 + 0.2 * textures.pink_noise(n // 4, 64, generator)).clamp(0, 1)
    for name, caption, images in (("leaves", "fallen leaves on the ground", leaves), ("clouds", "a cloudy sky", noise)):
        drawn += [(f"{name}-{i:03d}", f"{caption}, picture {i}", image) for i, image in enumerate(images)]
    return drawn


def write_list(folder: Path, n: int = 200) -> Path:
    """Write the images and ``suspects.csv``; returns the list's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(s.id, str(s.images[0]), s.caption, s.kind or "", True) for s in read_suspects("lab:planted")[0]]
    for name, caption, image in unplanted(n):
        path = folder / f"{name}.png"
        Image.fromarray(image.permute(1, 2, 0).mul(255).round().byte().numpy()).save(path)
        rows.append((f"un-{name}", path.name, caption, name.split("-")[0], False))
    order = np.random.default_rng(SEED).permutation(len(rows))
    with (folder / "suspects.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "image", "caption", "kind", "planted"])
        writer.writerows(rows[i] for i in order)
    return folder / "suspects.csv"


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, default=200)
    given = parser.parse_args()
    print(write_list(given.folder, given.n))


if __name__ == "__main__":
    main()
