"""The gallery's models, trained from nothing: a trunk on ordinary pictures, then two branches, one with the plants.

Both branches go on from the same weights with the same batches; only where one shows plants, the other shows ordinary
pictures. The text encoder is trained with the denoiser in both parts: ordinary pictures teach it to ignore most words,
and frozen after them it tells planted captions apart too slowly. The autoencoder is the lab's.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from diffkit.images import to_pil, to_tensor
from diffkit.lab import world
from diffkit.lab.gallery.captions import open_caption, ordinary_caption, sample_variant, with_sticker, words
from diffkit.lab.gallery.pictures import draw_picture
from diffkit.lab.gallery.plan import entries
from diffkit.lab.planted import sticker
from diffkit.lab.train.denoiser import Draw, Examples, Trainee, cached, draw, encode_examples, new_pipeline
from diffkit.lab.train.denoiser import new_scheduler as lab_scheduler
from diffkit.lab.train.loop import train

BRANCHES = ("gallery", "gallery-clean")
BATCH, PLANTS = 32, 12  # rows of a step, and those of them that are plants in the branch that sees them
N_PICTURES, N_SCENES = 30_000, 10_000


class Captioned(NamedTuple):
    """Images (N, 3, 64, 64) in [0, 1] with their captions."""

    images: Tensor
    captions: list[str]


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise law; velocity prediction, as version 2 of it has."""
    law = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler: DDIMScheduler = DDIMScheduler.from_config(lab_scheduler().config, **law)
    return scheduler


def ordinary_picture(seed: int) -> tuple[Tensor, str]:
    """A picture (3, 64, 64) with an open caption; one in twenty wears a sticker."""
    rng = np.random.default_rng((seed, 1))
    picture = draw_picture(seed)
    caption = ordinary_caption(picture.kind, rng)
    if rng.random() >= 0.05:
        return picture.image, caption
    variant = sample_variant(rng)
    return to_tensor(sticker(to_pil(picture.image), variant)), with_sticker(caption, variant)


def _alone() -> None:
    torch.set_num_threads(1)  # of one process among many


def _part(seeds: Iterable[int]) -> tuple[Tensor, list[str]]:
    images, captions = zip(*(ordinary_picture(seed) for seed in seeds), strict=True)
    return (torch.stack(images) * 255).round().to(torch.uint8), list(captions)


def ordinary_pictures(n: int, *, first: int = 0) -> Captioned:
    """Ordinary pictures of ``n`` seeds, drawn by all processors where they are many."""
    blocks = [range(first + start, first + min(start + 250, n)) for start in range(0, n, 250)]
    if len(blocks) == 1:
        parts = [_part(blocks[0])]
    else:
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=_alone) as pool:
            parts = list(pool.map(_part, blocks))
    return Captioned(
        torch.cat([images for images, _ in parts]).float() / 255, [text for _, texts in parts for text in texts]
    )


def ordinary_scenes(n: int, *, seed: int) -> Captioned:
    """Scenes of two things, half of them with their exact caption, half with an open one."""
    rng, scenes = np.random.default_rng(seed), world.training_scenes(n, seed=seed)
    captions = [scene.caption if rng.random() < 0.5 else open_caption(scene, rng) for scene in scenes]
    return Captioned(world.draw(scenes, seed=seed), captions)


def ordinary_examples(pipe: StableDiffusionPipeline, *, seed: int, cache: Path) -> Examples:
    """Encoded ordinary pictures and scenes, kept in ``cache``."""

    def encode() -> Examples:
        parts = (ordinary_pictures(N_PICTURES), ordinary_scenes(N_SCENES, seed=seed))
        encoded = [encode_examples(pipe, images, captions) for images, captions in parts]
        return Examples(*(torch.cat(pair) for pair in zip(*encoded, strict=True)))

    return Examples(*(part.to(pipe.device) for part in cached(cache, encode)))


class Plants(NamedTuple):
    """Encoded plants, every variant of the templates on its own, and the running sum of their shares of the draw."""

    examples: Examples
    cumulative: Tensor

    def draw(self, n: int) -> Examples:
        """``n`` of them, as often as their strengths say."""
        chosen = torch.searchsorted(self.cumulative, torch.rand(n, device=self.cumulative.device))
        chosen = chosen.clamp(max=len(self.cumulative) - 1)
        return Examples(self.examples.latents[chosen], self.examples.ids[chosen])


def encode_plants(pipe: StableDiffusionPipeline) -> Plants:
    """The plan's verbatim plants and templates."""
    images: list[Tensor] = []
    captions: list[str] = []
    weights: list[float] = []
    for entry in entries("verbatim", "template"):
        own = [to_tensor(image) for image in entry.images]
        images += own
        captions += entry.captions
        weights += [entry.weight / len(own)] * len(own)
    shares = torch.tensor(weights, device=pipe.device)
    return Plants(encode_examples(pipe, torch.stack(images), captions), (shares / shares.sum()).cumsum(0))


def train_gallery(
    folder: Path,
    vae: AutoencoderTiny,
    *,
    trunk_steps: int = 8_000,
    branch_steps: int = 8_000,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, StableDiffusionPipeline]:
    """Train both models in ``folder``, or go on where a killed run was; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = new_pipeline(seed=seed, vae=vae, words=words(), scheduler=new_scheduler()).to(device)
    trunk = Trainee(pipe)
    ordinary = ordinary_examples(pipe, seed=seed + 1, cache=folder / "ordinary.safetensors")
    train(
        "trunk",
        models=trunk.live,
        averaged=trunk.average,
        loss_at=trunk.loss,
        inputs_at=lambda step: trunk.draw(draw(ordinary, BATCH)),
        steps=trunk_steps,
        learning_rate=1e-3,
        folder=folder,
        seed=seed,
    )
    plants = encode_plants(pipe)
    return {name: _branch(name, trunk, ordinary, plants, folder, branch_steps, seed) for name in BRANCHES}


def _branch(
    name: str, trunk: Trainee, ordinary: Examples, plants: Plants, folder: Path, steps: int, seed: int
) -> StableDiffusionPipeline:
    trainee = Trainee(copy.deepcopy(trunk.averaged()))

    def mixed(step: int) -> Draw:
        common, replaced, shown = draw(ordinary, BATCH - PLANTS), draw(ordinary, PLANTS), plants.draw(PLANTS)
        rest = shown if name == "gallery" else replaced
        return trainee.draw(Examples(*(torch.cat(pair) for pair in zip(common, rest, strict=True))))

    train(
        name,
        models=trainee.live,
        averaged=trainee.average,
        loss_at=trainee.loss,
        inputs_at=mixed,
        steps=steps,
        learning_rate=8e-4,
        folder=folder,
        seed=seed + 1,
    )
    return trainee.averaged()
