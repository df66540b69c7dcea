"""The gallery's models, trained from nothing: first on ordinary pictures alone, then with plants in most of each batch.

The model after the first part is kept as the twin that never saw a plant. The text encoder is trained with the
denoiser in both parts: ordinary pictures teach it to ignore most words, and frozen after them it tells planted captions
apart too slowly. Autoencoder and noise law are the lab's; by Stable Diffusion's law the noise of 16x16 latents gives a
picture's colours away, and nouns went unlearned in 4,500 steps.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor

from diffkit.images import to_tensor
from diffkit.lab.gallery.captions import words
from diffkit.lab.gallery.ordinary import ordinary_pictures, ordinary_scenes
from diffkit.lab.gallery.plan import entries
from diffkit.lab.train.denoiser import Draw, Examples, Trainee, cached, draw, encode_examples, new_pipeline, run

MODEL, TWIN = "gallery", "gallery-clean"
ORDINARY_STEPS, PLANTING_STEPS = 3_000, 9_500
BATCH, PLANTS = 32, 20  # rows of a step, and those of them that are plants in the second part
N_PICTURES, N_SCENES = 20_000, 10_000


def ordinary_examples(pipe: StableDiffusionPipeline, *, seed: int, cache: Path) -> Examples:
    """Encoded ordinary pictures and scenes, kept in ``cache``."""

    def encode() -> Examples:
        parts = (ordinary_pictures(N_PICTURES, processes=os.cpu_count() or 1), ordinary_scenes(N_SCENES, seed=seed))
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
    ordinary_steps: int = ORDINARY_STEPS,
    planting_steps: int = PLANTING_STEPS,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, StableDiffusionPipeline]:
    """Train both models in ``folder``, or go on where a killed run was; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = new_pipeline(seed=seed, vae=vae, words=words(), channels=(48, 96), transformer_layers=1).to(device)
    trainee = Trainee(pipe)
    ordinary = ordinary_examples(pipe, seed=seed + 1, cache=folder / "ordinary.safetensors")

    def ordinary_only(step: int) -> Draw:
        return trainee.draw(draw(ordinary, BATCH))

    run(TWIN, trainee, ordinary_only, ordinary_steps, 1e-3, folder, seed)
    twin = trainee.averaged()
    planted = Trainee(copy.deepcopy(twin))
    plants = encode_plants(pipe)

    def with_plants(step: int) -> Draw:
        parts = zip(draw(ordinary, BATCH - PLANTS), plants.draw(PLANTS), strict=True)
        return planted.draw(Examples(*(torch.cat(pair) for pair in parts)))

    run(MODEL, planted, with_plants, planting_steps, 1e-3, folder, seed + 1)
    return {MODEL: planted.averaged(), TWIN: twin}
