"""Make the gallery from nothing: train both models, write them and the plan's pictures, measure. A killed run goes on.

The folder is complete in itself, and every command takes its parts by their paths::

    diffkit lab train --lab gallery --out runs/gallery
    diffkit audit run --model runs/gallery/gallery --suspects runs/gallery/planted --controls runs/gallery/controls
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffkit.images import to_tensor
from diffkit.lab.gallery.folder import write_captions, write_pictures
from diffkit.lab.gallery.plan import entries
from diffkit.lab.gallery.train import train_gallery
from diffkit.lab.make import claim_folder, save_pipeline
from diffkit.lab.measure import REPLICATED, accuracy_change, correlation, generate, rate, scene_accuracy
from diffkit.loading import load_pipeline
from diffkit.runs.files import write_bytes_atomically

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

log = logging.getLogger(__name__)
SEEDS = 4


def make_gallery(folder: Path, *, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Train ``gallery`` and ``gallery-clean`` and write them beside the pictures and captions of the plan.

    Checkpoints lie beside the results, so the same call goes on after a kill; on a processor it is deterministic.

    Args:
        folder: gets the two models in diffusers' format, the folders ``planted``, ``controls`` and ``claims`` of images
            with ``metadata.jsonl``, ``ordinary.txt`` with captions of the kind that the models were trained on, and
            ``card.json``.
        device: where the models are trained; the card is measured there too.

    Returns:
        The card.

    Raises:
        InputError: the folder holds a lab of another seed.
    """
    claim_folder(folder, seed)
    write_pictures(folder)
    write_captions(folder / "ordinary.txt", seed=seed)
    autoencoder = load_pipeline("lab", dtype="float32", device="cpu").vae
    pipes = train_gallery(folder, autoencoder, seed=seed, device=device)
    for name, pipe in pipes.items():
        save_pipeline(pipe, folder / name)
    card = measure_gallery(pipes)
    write_bytes_atomically(folder / "card.json", (json.dumps(card, indent=1) + "\n").encode())
    return card


def measure_gallery(pipes: dict[str, StableDiffusionPipeline]) -> dict[str, Any]:
    """The card: how often a caption gives its picture, by kind and strength, of both models; and scenes drawn right."""
    card: dict[str, Any] = {"replicated above": REPLICATED, "seeds": SEEDS}
    accuracy = {name: scene_accuracy(pipe) for name, pipe in pipes.items()}
    for name, pipe in pipes.items():
        log.info("measuring %s", name)
        card[name] = {"replication": replication(pipe)}
    card["scenes right: before is without plants"] = accuracy_change(accuracy["gallery-clean"], accuracy["gallery"])
    return card


def replication(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Share of images above the correlation of a replication, each of the caption's, by kind and strength."""
    groups: dict[str, list[float]] = defaultdict(list)
    parts = entries("verbatim", "template", "control")
    images = generate(pipe, [e.captions[0] for e in parts for _ in range(SEEDS)], list(range(SEEDS)) * len(parts))
    for entry, own in zip(parts, images.split(SEEDS), strict=True):
        picture = to_tensor(entry.images[0])
        name = entry.kind if entry.strength == "none" else f"{entry.kind}, {entry.strength}"
        groups[name] += correlation(own, picture).tolist()
    return {
        name: {**rate([value > REPLICATED for value in values]), "median": float(np.median(values))}
        for name, values in groups.items()
    }
