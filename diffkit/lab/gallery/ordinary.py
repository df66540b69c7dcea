"""Ordinary pictures and scenes with open captions: what the gallery's models are trained on beside the plants."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffkit.images import to_pil, to_tensor
from diffkit.lab import world
from diffkit.lab.gallery.captions import open_caption, ordinary_caption, sample_variant, with_sticker
from diffkit.lab.gallery.pictures import draw_picture
from diffkit.lab.planted import sticker


class Captioned(NamedTuple):
    """Images (N, 3, 64, 64) in [0, 1] with their captions."""

    images: Tensor
    captions: list[str]


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


def ordinary_pictures(n: int, *, first: int = 0, processes: int = 1) -> Captioned:
    """Ordinary pictures of ``n`` seeds from ``first``, some 7 ms each."""
    blocks = [range(first + start, first + min(start + 250, n)) for start in range(0, n, 250)]
    if processes == 1:
        parts = [_part(block) for block in blocks]
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_alone) as pool:
            parts = list(pool.map(_part, blocks))
    return Captioned(
        torch.cat([images for images, _ in parts]).float() / 255, [text for _, texts in parts for text in texts]
    )


def ordinary_scenes(n: int, *, seed: int) -> Captioned:
    """Scenes of two things, half of them with their exact caption, half with an open one."""
    rng, scenes = np.random.default_rng(seed), world.training_scenes(n, seed=seed)
    captions = [scene.caption if rng.random() < 0.5 else open_caption(scene, rng) for scene in scenes]
    return Captioned(world.draw(scenes, seed=seed), captions)
