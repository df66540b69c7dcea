"""Retention data: image-caption pairs on which the model should not change.

Pairs from a folder or list; captions alone, for which the model first generates images itself, so that no other data
is needed; or, for the lab, its scenes. Rows whose caption is a suspect's are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.console import say
from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.latents import encode_images
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from diffkit.suspects import Suspect, read_suspects
from memorization.generation import Sampling, generate, require_finite
from memorization.items import say_row_errors
from memorization.presets import Preset
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run

__all__ = ["LAB_SCENES", "Retention", "read_retention"]

LAB_SCENES, GALLERY_PICTURES = "lab:scenes", "gallery:ordinary"
CHUNK = 32  # images encoded, or generated, at once
FEWEST = 8  # pairs; with fewer the model would overfit them


class Retention(NamedTuple):
    """Retention data.

    Attributes:
        latents: (N, ...) float32 on the CPU, as the denoiser takes them.
        embeds: N rows of the captions, float32 on the CPU.
        validation: (V, 3, H, W) images that are not trained on.
        captions: the V captions of those.
        all_captions: the N training captions.
        source: as given.
        left_out: rows that were a suspect's, or could not be read.
    """

    latents: Tensor
    embeds: Embeds
    validation: Tensor
    captions: list[str]
    all_captions: list[str]
    source: str
    left_out: int


def read_retention(
    pipe: Pipeline,
    suspects: Sequence[Suspect],
    run: Run,
    *,
    source: str,
    preset: Preset,
    size: tuple[int, int],
    limit: int,
    validation: int,
    sampling: Sampling,
    seed: int,
) -> Retention:
    """Read, generate or render the retention data.

    Args:
        pipe: the pipeline, unchanged.
        suspects: rows with their captions are left out.
        run: keeps generated images, so that a resumed run has the same.
        source: ``lab:scenes``, ``gallery:ordinary``, a folder or list of images with captions, a list of captions
            alone, or ``auto``: the preset's, refused without one.
        preset: of the run.
        size: (height, width) of images.
        limit: pairs to train on at most.
        validation: pairs kept for validation.
        sampling: of images that are generated where only captions are given.
        seed: of their noise.

    Raises:
        InputError: ``auto`` without data in the preset, or too few usable rows.
    """
    if source == "auto":
        if preset.retention is None:
            raise InputError(
                "Ordinary images to keep are needed, the retention data: give --set retention=FOLDER (images with "
                "captions) or a .txt of ordinary captions, from which the model draws the images itself."
            )
        source = preset.retention
    taken = {suspect.caption for suspect in suspects}
    if source in (LAB_SCENES, GALLERY_PICTURES):
        images, captions = (_scenes if source == LAB_SCENES else _gallery)(limit + validation, seed)
        left_out = 0
    else:
        images, captions, left_out = _read(pipe, run, source, taken, size, limit + validation, sampling, seed)
    if len(captions) < FEWEST + validation:
        raise InputError(
            f"The retention data {source!r} have {len(captions)} usable rows ({left_out} left out: a suspect's "
            f"caption, or unreadable); at least {FEWEST + validation} are needed."
        )
    kept = captions[validation:]
    latents = [encode_images(pipe, part).float().cpu() for part in images[validation:].split(CHUNK)]
    embeds = encoded(pipe, kept).to("cpu", torch.float32)
    return Retention(torch.cat(latents), embeds, images[:validation], captions[:validation], kept, source, left_out)


def _scenes(n: int, seed: int) -> tuple[Tensor, list[str]]:
    from diffkit.lab import world

    scenes = world.training_scenes(n, seed=seed + 11)
    return world.draw(scenes, seed=seed + 12), [scene.caption for scene in scenes]


def _gallery(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """Three quarters ordinary pictures, a quarter scenes, as the gallery was trained on them."""
    from diffkit.lab.gallery.ordinary import ordinary_pictures, ordinary_scenes

    pictures, scenes = ordinary_pictures(n - n // 4), ordinary_scenes(n // 4, seed=seed + 11)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 12))
    captions = [*pictures.captions, *scenes.captions]
    return torch.cat([pictures.images, scenes.images])[order], [captions[place] for place in order]


def _read(
    pipe: Pipeline,
    run: Run,
    source: str,
    taken: set[str],
    size: tuple[int, int],
    limit: int,
    sampling: Sampling,
    seed: int,
) -> tuple[Tensor, list[str], int]:
    rows, errors = read_suspects(source)
    say_row_errors(errors, rest="more rows of the retention data cannot be read.")
    usable = [row for row in rows if row.caption not in taken]
    left_out = len(errors) + len(rows) - len(usable)
    pairs = [row for row in usable if row.images]
    if pairs:
        if len(pairs) < len(usable):
            say(f"{len(usable) - len(pairs)} rows of the retention data have no image and are left out.")
        left_out += len(usable) - len(pairs)
        images, captions, damaged = _readable(pairs, size, limit)
        return images, captions, left_out + damaged
    captions = [row.caption for row in usable[:limit]]
    return _draw(pipe, run, captions, sampling, seed), captions, left_out


def _readable(pairs: Sequence[Suspect], size: tuple[int, int], limit: int) -> tuple[Tensor, list[str], int]:
    """The first images that can be read, their captions, and how many before them cannot."""
    images, captions, damaged = list[Tensor](), list[str](), 0
    for row in pairs:
        if len(images) == limit:
            break
        try:
            images.append(load_image(row.images[0], size))
        except InputError as error:
            say(f"Left out of the retention data: {error}")
            damaged += 1
        else:
            captions.append(row.caption)
    return torch.stack(images) if images else torch.empty(0), captions, damaged


def _draw(pipe: Pipeline, run: Run, captions: Sequence[str], sampling: Sampling, seed: int) -> Tensor:
    """One image per caption by the model itself; chunks that are in the run already are read from it."""
    negative = empty_text(pipe)
    files: list[str] = []
    for first in range(0, len(captions), CHUNK):
        key, part = f"retention:{first}", captions[first : first + CHUNK]
        if key not in run.done:
            embeds = encoded(pipe, part)
            seeds = [item_seed(seed, text, "retention", first + i) for i, text in enumerate(part)]
            images = generate(pipe, embeds, negative, seeds, sampling=sampling).images
            require_finite(images, "that the model draws for retention captions")
            names = [run.save_image(f"retention-{first + i}", image) for i, image in enumerate(images)]
            run.write(key, {"files": names})
        files += run.done[key]["files"]
    return torch.stack([load_image(run.path(name)) for name in files])
