"""One image: attack it from many Gaussian starts, and generate from the triggers and from points between them.

Start k, and the noise its search draws, are the same for every image: a difference between two images from one
start is due to the image. A family's companions (pooled embeddings) are the empty caption's throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffkit.seeds import item_seed
from memorization.attack.base import Target
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.dori import Dori
from memorization.attack.initialization import OTHER_CAPTIONS, StartingPoints
from memorization.copies import CopyDetector
from memorization.copies.finite import finite_similarity
from memorization.copies.references import load_references
from memorization.generation import Sampling, generate
from memorization.items import AuditItem
from memorization.locality import embeddings as space
from memorization.locality.interpolation import points, stacked
from memorization.locality.settings import LocalitySettings
from memorization.text_embeddings import empty_text, encoded, unaccompanied

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class ExploredImage(NamedTuple):
    """An image's record for the journal, and its triggers (K, L, D), or None where it could not be attacked."""

    record: dict[str, Any]
    triggers: Tensor | None


class Explorer:
    """Attacks images on one pipeline.

    Args:
        pipe: of a known family whose prompts are equally long.
        settings: of the study.
        copies: the copy detector.
        size: (height, width) of the images the pipeline makes.
        threshold: similarity from which an image counts as given.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        settings: LocalitySettings,
        copies: CopyDetector,
        size: tuple[int, int],
        threshold: float,
    ) -> None:
        self.pipe, self.settings, self.copies, self.size, self.threshold = pipe, settings, copies, size, threshold
        self.sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, settings.micro_batch)
        self.points = StartingPoints(pipe, settings.ordinary or OTHER_CAPTIONS)
        self.negative = empty_text(pipe)
        at_once = math.ceil(settings.starts / math.ceil(settings.starts / settings.micro_batch))
        self.attack = Dori(
            budgets=(settings.attack_steps,),
            micro_batch=at_once,
            draws=settings.draws,
            learning_rate=settings.learning_rate,
        )

    def caption(self, item: AuditItem) -> Tensor:
        """(L, D) float32 embedding of an item's caption."""
        return encoded(self.pipe, [item.suspect.caption]).prompt_embeds[0].float().cpu()

    def starts(self, count: int, first: int = 0) -> Tensor:
        """(count, L, D) Gaussian starts, from number ``first``; the same for every image."""
        rows = [self.points.start("gaussian", own=self.negative, seed=self._seed(first + k)) for k in range(count)]
        return torch.cat([row.prompt_embeds for row in rows])

    def _seed(self, k: int) -> int:
        return item_seed(self.settings.seed, "", "start", k)

    def explore(self, item: AuditItem, checkpoints: Checkpoints | None = None) -> ExploredImage:
        """Attack one image from every start, generate from every trigger, and from points between them."""
        references = load_references(item, self.size)
        record: dict[str, Any] = {"id": item.suspect.id, "role": item.role, "prompt": item.suspect.caption}
        if references.images is None:
            return ExploredImage(record | {"reason": references.reason}, None)
        starts = self.starts(self.settings.starts)
        rows = unaccompanied(self.pipe, starts)
        targets = [Target(references.images[0], rows.rows([k]), self._seed(k)) for k in range(len(starts))]
        results = self.attack(self.pipe, targets, checkpoints=checkpoints)
        triggers = torch.stack([result.embeddings[-1] for result in results])
        caption = self.caption(item)
        values = self.similarity(item, torch.cat([triggers, caption[None]]), references.images)
        if any(value is None for value in values):
            reason = "the similarity is not a number: a generated image is broken (add --dtype float32 and a new --out)"
            return ExploredImage(record | {"reason": reason}, None)
        similarity = [value for value in values[:-1] if value is not None]
        success = [value >= self.threshold for value in similarity]
        record |= {"reason": None, "similarity": similarity, "success": success, "caption": values[-1]}
        record |= geometry(triggers, starts, caption)
        record["lines"] = self._lines(item, references.images, triggers, starts, caption, success)
        return ExploredImage(record, triggers)

    def similarity(self, item: AuditItem, embeds: Tensor, references: Tensor) -> list[float | None]:
        """Median similarity over seeds of the images from each embedding; None where it is not a number."""
        n = self.settings.generations
        seeds = [item_seed(self.settings.seed, item.key, "evaluate", i) for i in range(n)] * len(embeds)
        rows = unaccompanied(self.pipe, embeds).repeat(n)
        images = generate(self.pipe, rows, self.negative, seeds, sampling=self.sampling).images
        values = finite_similarity(self.copies, images, references).amax(1).view(-1, n).tolist()
        return [round(median(row), 5) if all(math.isfinite(value) for value in row) else None for row in values]

    def _lines(
        self,
        item: AuditItem,
        references: Tensor,
        triggers: Tensor,
        starts: Tensor,
        caption: Tensor,
        success: Sequence[bool],
    ) -> list[dict[str, Any]]:
        """One row a point: kind, from which trigger, share of the way, and similarity."""
        good = [k for k, reached in enumerate(success) if reached]
        settings = self.settings
        fresh = self.starts(settings.lines, first=settings.starts)
        line_points = points(triggers, starts, caption, good, lines=settings.lines, shares=settings.shares, fresh=fresh)
        if not line_points:
            return []
        values = self.similarity(item, stacked(line_points), references)
        return [
            {"kind": p.kind, "from": p.origin, "to": p.end, "share": p.share, "similarity": value}
            for p, value in zip(line_points, values, strict=True)
        ]


def geometry(triggers: Tensor, starts: Tensor, caption: Tensor) -> dict[str, Any]:
    """Distances and displacements of one image's triggers, as JSON values.

    Args:
        triggers: (K, L, D); ``starts`` the same shape.
        caption: (L, D).

    Returns:
        Per start: ``norms`` of the displacement, distance to the caption before and after, the cosine of the
        displacement with the way to the caption; and over pairs ``distance`` {mean, least, most} of the triggers.
    """
    displacements = triggers - starts
    distances = space.pairwise_distance(triggers)
    pairs = distances[torch.triu(torch.ones_like(distances, dtype=torch.bool), 1)]
    return {
        "norms": _rounded(space.flat(displacements).norm(dim=1)),
        "caption distance": {
            "start": _rounded(space.flat(starts - caption).norm(dim=1)),
            "trigger": _rounded(space.flat(triggers - caption).norm(dim=1)),
        },
        "towards caption": _rounded(space.cosine(displacements, caption - starts)),
        "distance": {"mean": round(float(pairs.mean()), 4), "least": round(float(pairs.min()), 4),
                     "most": round(float(pairs.max()), 4), "pairs": len(pairs)},
    }  # fmt: skip


def _rounded(values: Tensor) -> list[float | None]:
    return [round(value, 5) if math.isfinite(value) else None for value in values.tolist()]
