"""Measure a small group of items: generate from their captions, attack them, generate from what the attack found.

Groups, batches and slots have constant sizes, and every draw has a seed of its own item, so that a result depends
neither on who else is audited nor on where an interrupted run was taken up again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.errors import ScoringError
from memorization.attack import attacks
from memorization.attack.base import Attack, Target, Triggers
from memorization.attack.starts import OTHER_CAPTIONS, StartingPoints, read_starts
from memorization.copies import CopyDetector
from memorization.detect import detectors
from memorization.generate import Generated, Sampling, generate, item_seed, round_trip
from memorization.items import AuditItem, References, load_references
from memorization.settings import AuditSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class Measurement(NamedTuple):
    """What the journal keeps of one item, its pictures by name, and its triggers by start."""

    record: dict[str, Any]
    pictures: dict[str, Tensor]
    triggers: dict[str, Triggers]


class Attacked(NamedTuple):
    """One start's triggers and the similarity of what they generate: (budgets, generations)."""

    triggers: Triggers
    images: Tensor
    similarity: list[list[float]]


class Measurer:
    """Measures groups of items on one model.

    Args:
        pipe: the audited pipeline.
        settings: the audit's settings.
        copies: the copy detector.
        size: (height, width) of the images the pipeline makes.
    """

    def __init__(
        self, pipe: DiffusionPipeline, settings: AuditSettings, copies: CopyDetector, size: tuple[int, int]
    ) -> None:
        self.pipe, self.settings, self.copies, self.size = pipe, settings, copies, size
        self.sampling = Sampling(settings.num_inference_steps, settings.guidance_scale, settings.micro_batch)
        self.detector = detectors.get(settings.detector)()
        self.starts = read_starts(settings.starts)
        self.starting_points = StartingPoints(pipe, settings.other_captions or OTHER_CAPTIONS)
        self.attack: Attack = attacks.get(settings.attack)(
            budgets=settings.budgets,
            micro_batch=settings.items_at_once * len(self.starts),
            learning_rate=settings.learning_rate,
            draws=settings.draws,
        )
        self.negative = encode_prompts(pipe, [""], guidance=False).prompt_embeds

    def measure(self, items: Sequence[AuditItem]) -> list[Measurement]:
        """Measure all items of a group."""
        own = [encode_prompts(self.pipe, [item.suspect.caption], guidance=False).prompt_embeds[0] for item in items]
        references = [load_references(item, self.size) for item in items]
        generated = self._from_captions(items, own)
        attacked = self._attack(items, own, references)
        rows = zip(items, references, generated, strict=True)
        return [self._measurement(item, known, made, attacked.get(item.key)) for item, known, made in rows]

    def _seeds(self, item: AuditItem, purpose: str, n: int) -> list[int]:
        return [item_seed(self.settings.seed, item.key, purpose, i) for i in range(n)]

    def _from_captions(self, items: Sequence[AuditItem], own: Sequence[Tensor]) -> list[Generated]:
        n = self.settings.generations
        seeds = [seed for item in items for seed in self._seeds(item, "caption", n)]
        embeds = torch.stack(list(own)).repeat_interleave(n, 0)
        all_ = generate(self.pipe, embeds, self.negative, seeds, sampling=self.sampling, detector=self.detector)
        scores = all_.scores.split(n) if all_.scores is not None else [None] * len(items)
        return [Generated(images, score) for images, score in zip(all_.images.split(n), scores, strict=True)]

    def _attack(
        self, items: Sequence[AuditItem], own: Sequence[Tensor], references: Sequence[References]
    ) -> dict[str, dict[str, Attacked]]:
        """Attack every item that has an image, from every start: key -> start -> result."""
        jobs = [
            (item, start, embeds, known.images)
            for item, embeds, known in zip(items, own, references, strict=True)
            for start in self.starts
            if known.images is not None
        ]
        targets = []
        for item, start, embeds, images in jobs:
            (seed,) = self._seeds(item, f"attack:{start}", 1)
            targets.append(Target(images[0], self.starting_points.start(start, own=embeds, seed=seed), seed))
        found = self.attack(self.pipe, targets)
        n, k = self.settings.attack_generations, len(self.settings.budgets)
        seeds = [s for item, *_ in jobs for _ in range(k) for s in self._seeds(item, "evaluate", n)]
        results: dict[str, dict[str, Attacked]] = {}
        if jobs:
            rows = torch.cat([triggers.embeddings for triggers in found]).repeat_interleave(n, 0)
            images = generate(self.pipe, rows, self.negative, seeds, sampling=self.sampling).images.split(n * k)
            for (item, start, _, known), triggers, made in zip(jobs, found, images, strict=True):
                likeness = torch.tensor(self._similarity(made, known)).view(k, n).tolist()
                results.setdefault(item.key, {})[start] = Attacked(triggers, made.unflatten(0, (k, n)), likeness)
        return results

    def _similarity(self, images: Tensor, references: Tensor) -> list[float]:
        """Similarity of each image to the reference it resembles most; NaN where the detector failed."""
        return [float(value) for value in self.copies.similarity(images, references).amax(1)]

    def _measurement(
        self, item: AuditItem, known: References, made: Generated, attacked: Mapping[str, Attacked] | None
    ) -> Measurement:
        reason, similarity, heard, ceiling = known.reason, None, None, None
        try:
            heard = _finite(made.scores.tolist(), self.detector.name) if made.scores is not None else None
            if known.images is not None:
                drawn = round_trip(self.pipe, known.images[:1])
                ceiling = _finite(self._similarity(drawn, known.images[:1]), "similarity")
                similarity = _finite(self._similarity(made.images, known.images), "similarity")
                for result in (attacked or {}).values():
                    _finite([value for row in result.similarity for value in row], "similarity")
        except ScoringError as error:
            reason, similarity, attacked = str(error), None, None
        pictures, best = self._pictures(known, made, similarity, attacked or {})
        record = {
            "id": item.suspect.id,
            "role": item.role,
            "prompt": item.suspect.caption,
            "kind": item.suspect.kind,
            "reason": reason,
            "seeds": self._seeds(item, "caption", self.settings.generations),
            "ceiling": _rounded(ceiling),
            "caption": _rounded(similarity),
            self.detector.name: _rounded(heard),
            "attack": {name: [_rounded(row) for row in result.similarity] for name, result in attacked.items()}
            if attacked
            else None,
            "best": best,
            "sample_gradients": self.attack.cost()[-1] * len(self.starts) if known.images is not None else 0,
        }
        return Measurement(record, pictures, {name: result.triggers for name, result in (attacked or {}).items()})

    def _pictures(
        self, known: References, made: Generated, similarity: list[float] | None, attacked: Mapping[str, Attacked]
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
        """The most similar image by caption and at each budget, and what the latter's start and similarity were."""
        pictures, best = {}, {}
        if known.images is not None:
            pictures["original"] = known.images[0]
        if bool(made.images.isfinite().all()):
            pictures["caption"] = made.images[_best(similarity)]
        for index, budget in enumerate(self.settings.budgets):
            if attacked and budget > 0:
                start = max(attacked, key=lambda name: median(attacked[name].similarity[index]))
                row = attacked[start].similarity[index]
                best[str(budget)] = {"start": start, "similarity": round(max(row), 5)}
                pictures[f"attack-{budget}"] = attacked[start].images[index, _best(row)]
        return pictures, best


def _finite(values: list[float], name: str) -> list[float]:
    if not all(math.isfinite(value) for value in values):
        raise ScoringError(f"{name} is not a number: the generated image is broken (try --dtype float32)")
    return values


def _best(similarity: Sequence[float] | None) -> int:
    return max(range(len(similarity)), key=lambda i: similarity[i]) if similarity else 0


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    """Five decimals: enough for any table."""
    return [round(value, 5) for value in values] if values is not None else None
