"""What tests of searches share: a reward, pipelines that are built and priced once, images as numbers."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from tiny import tiny_pipeline
from tiny_families import family_pipeline

from diffkit.seeds import generators

__all__ = ["brightness", "pixels", "seeded", "shared_family", "shared_tiny"]


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward that early estimates already order well, so that the winner is not always the same."""
    return images.mean((1, 2, 3)) * 10


@functools.cache
def shared_tiny(scheduler: str = "ddim") -> Any:
    """The tiny Stable Diffusion pipeline of a scheduler, for tests that leave it as it was."""
    return tiny_pipeline(scheduler)


@functools.cache
def shared_family(name: str) -> Any:
    """The tiny pipeline of a family's row, for tests that leave it as it was."""
    return family_pipeline(name)


def pixels(image: Any) -> np.ndarray:
    """Of an image or of several, signed, so that they can be subtracted."""
    return np.asarray(image).astype(int)


def seeded(seed: int) -> torch.Generator:
    """The generator of one seed."""
    return generators([seed])[0]
