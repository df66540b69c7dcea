"""Make the lab again from nothing: train every model, write the files, measure the card. A killed run goes on."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from diffkit.errors import InputError
from diffkit.lab import assets
from diffkit.lab.measure import measure
from diffkit.lab.train.autoencoder import train_autoencoder
from diffkit.lab.train.denoiser import N_SCENES, scene_examples, train_denoisers
from diffkit.lab.train.preview import train_preview
from diffkit.lab.train.reward import train_reward
from diffkit.lab.train.trio import train_trio
from diffkit.loading import load_pipeline
from diffkit.runs.files import write_bytes_atomically

log = logging.getLogger(__name__)

# block_out_channels is derived, and diffusers warns where it is given; the other names this machine's folders.
DERIVED = ("block_out_channels", "_name_or_path")


def make_lab(folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Train autoencoder, the pipelines, preview decoder and reward in ``folder``, write them there, and measure.

    Checkpoints lie beside the results, so the same call goes on after a kill. Deterministic on one machine with one
    number of threads.

    Returns:
        The card, as also written to ``folder/card.json``.

    Raises:
        InputError: the folder holds a lab of another seed.
    """
    claim_folder(folder, seed)
    vae = train_autoencoder(folder, seed=seed)
    pipes = train_denoisers(folder, vae, seed=seed)
    pipes[assets.TRIO] = train_trio(folder, pipes["lab-clean"], seed=seed)
    for name, pipe in pipes.items():
        save_pipeline(pipe, folder / name)
    scenes = scene_examples(pipes["lab"], N_SCENES, seed=seed + 1, cache=folder / "scenes.safetensors")
    train_preview(folder, pipes["lab"], scenes, seed=seed)
    _edit_json(folder / "preview" / "config.json", remove=DERIVED)
    train_reward(folder, seed=seed)
    return write_card(folder)


def claim_folder(folder: Path, seed: int) -> None:
    """Note the seed of the lab that the folder is for; 0 in a folder that an earlier version began."""
    path = folder / "lab.json"
    begun = json.loads(path.read_text())["seed"] if path.is_file() else 0 if list(folder.glob("*.ckpt")) else seed
    if begun != seed:
        raise InputError(f"{folder} holds a lab of seed {begun}, not {seed}. Choose another --out, or --seed {begun}.")
    write_bytes_atomically(path, (json.dumps({"seed": seed}) + "\n").encode())


def save_pipeline(pipe: StableDiffusionPipeline, target: Path) -> None:
    """Write a pipeline in half precision, as safetensors, in diffusers' folder format."""
    copy.deepcopy(pipe).to(dtype=torch.float16).save_pretrained(target, safe_serialization=True)
    _edit_json(target / "vae" / "config.json", remove=DERIVED)
    for config in (target / "model_index.json", target / "unet" / "config.json"):
        _edit_json(config, remove=("_name_or_path",))
    _edit_json(target / "text_encoder" / "config.json", dtype="float32")  # as diffusers loads the other parts


def _edit_json(path: Path, *, remove: tuple[str, ...] = (), **values: object) -> None:
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove} | values
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_card(folder: Path) -> dict[str, Any]:
    """Measure the models that lie in ``folder`` and write ``card.json`` there."""
    pipes = {name: load_pipeline(folder / name) for name in (*assets.BRANCHES, assets.TRIO)}
    card = measure(pipes, folder)
    write_bytes_atomically(folder / "card.json", (json.dumps(card, indent=1) + "\n").encode())
    return card


def read_card() -> dict[str, Any]:
    """The shipped card.

    Raises:
        InputError: when the installation has none.
    """
    card: dict[str, Any] = json.loads(assets.card_path().read_text())
    return card
