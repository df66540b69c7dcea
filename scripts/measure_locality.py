"""Locality of the lab's full-strength memories: many triggers an image, against every null.

    python scripts/measure_locality.py [--out runs/locality] [--starts 8] [--json FILE] [--plots FOLDER]

Eight planted images against eight photographs that the lab has never seen. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diffkit.lab import planted, world
from diffkit.loading import load_pipeline, model_checksum
from memorization.items import Gathered, gather
from memorization.locality.report import plots
from memorization.locality.settings import LocalitySettings
from memorization.locality.study import study


def images() -> Gathered:
    """The eight full-strength verbatim images, and as many never-trained photographs."""
    kinds = {p.name: (p.kind, p.strength) for p in planted.PHOTOGRAPHS}
    gathered = gather("lab:planted", "lab:controls")
    wanted = {"suspect": ("verbatim", "full"), "control": ("control", "none")}
    kept = {
        role: [i for i in gathered.items if i.role == role and kinds.get(i.suspect.images[0].stem) == wanted[role]][:8]
        for role in ("suspect", "control")
    }
    return Gathered([*kept["suspect"], *kept["control"]], [], [])


PARTS = ("images", "starts", "displacements", "embeddings", "lines", "activations", "weights", "reading")


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What the documents quote; of the layers' activations and weights all, of the ordinary captions their number."""
    settings = {key: value for key, value in summary["settings"].items() if key != "ordinary"}
    settings["ordinary captions"] = len(summary["settings"]["ordinary"])
    return {"settings": settings} | {part: summary[part] for part in PARTS}


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/locality"))
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of each attack")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plots", type=Path, help="folder for the figures as PNG")
    options = parser.parse_args()
    settings = LocalitySettings(
        starts=options.starts,
        attack_steps=options.steps,
        generations=2,
        lines=3,
        shares=(0.5,),
        threshold=0.75,
        micro_batch=8,
        ordinary=tuple(scene.caption for scene in world.training_scenes(200, seed=2025)),
    )
    result = study(
        load_pipeline("lab"),
        images(),
        out=options.out,
        model="lab",
        settings=settings,
        model_sha256=model_checksum("lab"),
    )
    text = json.dumps(figures(result.summary), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        for name, figure in plots(result.summary).items():
            figure.savefig(options.plots / f"locality-{name}.png", dpi=150, facecolor="white")


if __name__ == "__main__":
    main()
