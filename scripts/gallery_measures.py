"""The gallery's models, suspects and never-trained pictures, and what is measured on a pipeline of its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.conditioning import encode_prompts
from diffkit.families import Pipeline
from diffkit.flops import count_flops
from diffkit.images import load_image
from diffkit.lab.gallery.captions import ordinary_captions
from diffkit.lab.gallery.ordinary import ordinary_pictures
from diffkit.lab.gallery.plan import WEIGHTS
from diffkit.loading import load_pipeline
from diffkit.rewards.lab import LabReward
from diffkit.seeds import item_seed
from diffkit.stats import rate
from diffkit.suspects import Suspect, read_suspects
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.attack.initialization import Start, StartingPoints
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling, generate
from memorization.quality.losses import Losses
from memorization.quality.settings import QualitySettings
from memorization.quality.snapshots import Snapshot, Validation, snapshot
from memorization.text_embeddings import encoded

COPY, SEEDS = 0.75, 3
STARTS: tuple[Start, ...] = ("other", "gaussian")
FIRST_HELD_OUT = 2_000_000  # seed of ordinary pictures that no model was trained on


class Gallery:
    """Models, suspects and never-trained pictures.

    Args:
        folder: with the two models; None takes the shipped ones.
        limit: suspects, and as many controls.
    """

    def __init__(self, folder: Path | None, device: str, limit: int) -> None:
        self.folder, self.device, self.limit = folder, device, limit
        planted = read_suspects("gallery:planted")[0]
        verbatim = [suspect for suspect in planted if suspect.kind == "verbatim"]
        self.every = sorted(verbatim, key=lambda suspect: list(WEIGHTS).index(str(suspect.extra["strength"])))
        self.suspects = self.every[:limit]
        self.templates = [suspect for suspect in planted if suspect.kind == "template"]
        self.controls = read_suspects("gallery:controls")[0]
        self.claims = read_suspects("gallery:claims")[0]
        self.other_captions = tuple(ordinary_captions(8))  # where the start "other" of an attack begins
        self.batch = 256 if device != "cpu" else 16

    def path(self, name: str) -> str:
        """What :func:`diffkit.load_pipeline` takes."""
        return str(self.folder / name) if self.folder else name

    @cached_property
    def model(self) -> Pipeline:
        """The model with the plants."""
        return self.load("gallery")

    def load(self, name: str) -> Pipeline:
        """One of the two models, in float32."""
        pipe = load_pipeline(self.path(name), dtype="float32", device=self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def likeness(self, images: Tensor, suspect: Suspect) -> float:
        """Median over images of the similarity to the suspect's image."""
        similarity = TiledCorrelation().similarity(images.cpu(), load_image(suspect.images[0])[None])
        return float(similarity.amax(1).median())

    def by_caption(self, pipe: Pipeline, items: Sequence[Suspect]) -> list[float]:
        """What each caption alone gives."""
        rows = encode_prompts(pipe, [item.caption for item in items], guidance=False).prompt_embeds
        empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
        return self._likenesses(pipe, items, rows, empty)

    def attacked(
        self, pipe: Pipeline, items: Sequence[Suspect], budgets: Sequence[int], starts: Sequence[Start] = STARTS
    ) -> dict[str, Any]:
        """By DoRI: what the best start brings back, and each, at each budget above 0."""
        return shares(self.brought_back(pipe, items, budgets, starts))

    def brought_back(
        self, pipe: Pipeline, items: Sequence[Suspect], budgets: Sequence[int], starts: Sequence[Start] = STARTS
    ) -> dict[str, list[dict[str, float]]]:
        """Similarity to each item's image after DoRI: budget above 0 -> for each item, start -> similarity."""
        points, empty = StartingPoints(pipe, self.other_captions), encode_prompts(pipe, [""], guidance=False)
        captions = encode_prompts(pipe, [item.caption for item in items], guidance=False).prompt_embeds
        targets = list[Target]()
        for item, own in zip(items, captions, strict=True):
            for start in starts:
                seed = item_seed(0, item.id, f"attack:{start}")
                targets.append(Target(load_image(item.images[0]), points.start(start, own=own, seed=seed), seed))
        triggers = Dori(budgets=budgets, micro_batch=min(self.batch // 4, len(targets)))(pipe, targets)
        result: dict[str, list[dict[str, float]]] = {}
        for look, budget in enumerate(budgets):
            if budget:
                rows = torch.stack([trigger.embeddings[look] for trigger in triggers])
                values = iter(
                    self._likenesses(pipe, [item for item in items for _ in starts], rows, empty.prompt_embeds)
                )
                result[str(budget)] = [{start: next(values) for start in starts} for _ in items]
        return result

    def _likenesses(self, pipe: Pipeline, items: Sequence[Suspect], rows: Tensor, empty: Tensor) -> list[float]:
        """Of what each row of embeddings gives to the item beside it."""
        seeds = list(range(SEEDS)) * len(rows)
        sampling = Sampling(20, 3.0, min(self.batch, len(seeds)))
        embeds = rows.repeat_interleave(SEEDS, 0).to(pipe.device)
        images = generate(pipe, embeds, empty, seeds, sampling=sampling).images.split(SEEDS)
        return [self.likeness(part, item) for part, item in zip(images, items, strict=True)]


def denoiser_call(pipe: Pipeline, rows: int = 1) -> Callable[[], Any]:
    """One call of the denoiser."""
    denoiser: Any = pipe.unet
    latents = torch.zeros(rows, denoiser.config.in_channels, *[denoiser.config.sample_size] * 2)
    text = encoded(pipe, [""] * rows).prompt_embeds
    return partial(denoiser, latents.to(text.device), 500, encoder_hidden_states=text)


def denoiser_flops(pipe: Pipeline) -> float:
    """Of one call of the denoiser as it is now, of one row."""
    counted = count_flops(pipe.unet, ("call",), denoiser_call(pipe))
    assert counted is not None
    return counted


def share(values: Sequence[float]) -> dict[str, Any]:
    """Copies among similarities, with n, interval and median."""
    return {**rate(sum(value >= COPY for value in values), len(values)), "median": median(values)}


def shares(values: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Copies by budget, by the best start and by each."""
    return {
        budget: share([max(row.values()) for row in rows])
        | {start: share([row[start] for row in rows]) for start in rows[0]}
        for budget, rows in values.items()
    }


@cache
def held_out_pictures() -> tuple[Tensor, Sequence[str]]:
    """128 ordinary pictures that no model was trained on, and their captions."""
    return ordinary_pictures(128, first=FIRST_HELD_OUT)


def quality(gallery: Gallery, pipe: Pipeline, rows: slice = slice(None)) -> Snapshot:
    """Images of 64 ordinary captions of scenes and pictures, and the loss on 128 ordinary pictures that were held out.

    Args:
        rows: which captions; two pictures go with each.
    """
    images, texts = held_out_pictures()
    pairs = slice(2 * (rows.start or 0), None if rows.stop is None else 2 * rows.stop)
    validation = Validation(images[pairs], tuple(texts[pairs]), "ordinary pictures, held out")
    prompts = list(dict.fromkeys(ordinary_captions(96, seed=7)))[:64][rows]
    settings = QualitySettings(seeds_per_prompt=2, num_inference_steps=20, micro_batch=gallery.batch)
    return snapshot(pipe, prompts, settings, validation=validation)


def joined(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Snapshots of different captions as one."""
    first = snapshots[0]
    validations = [each.validation for each in snapshots]
    return replace(
        first,
        prompts=tuple(prompt for each in snapshots for prompt in each.prompts),
        images=torch.cat([each.images for each in snapshots]),
        latents=torch.cat([each.latents for each in snapshots]),
        similarity=torch.cat([each.similarity for each in snapshots]),
        validation=Validation(
            torch.cat([each.images for each in validations]),
            tuple(caption for each in validations for caption in each.captions),
            first.validation.source,
        ),
        losses=Losses(
            torch.cat([each.losses.loss for each in snapshots]),
            torch.cat([each.losses.unconditional for each in snapshots]),
            first.losses.bins,
        ),
    )


class SceneFeatures(nn.Module):
    """What the lab's reward sees in an image: the mean of its vision encoder's last states, (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = LabReward().model

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        return self.reward.encode_images(images).mean(1)
