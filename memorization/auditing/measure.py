"""Measure a small group of items: generate from their captions, score these, attack, generate from the triggers.

Groups, batches and slots have constant sizes, and every random draw has its item's own seed. A result therefore depends
neither on the other items nor on where an interrupted run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.errors import ScoringError
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from memorization.attack.base import Triggers
from memorization.auditing.attack_suite import Attempts, Ladder, best_variant, similarities
from memorization.auditing.controls import Stopped
from memorization.auditing.effort import Effort
from memorization.auditing.result import BestImage, Curves, DetectorScore, MeasuredRecord
from memorization.auditing.settings import AuditSettings
from memorization.copies import CopyDetector
from memorization.copies.references import References, load_references
from memorization.detection import make_detector
from memorization.detection.base import Detector, is_recording
from memorization.detection.curvature_difference import mask_for
from memorization.detection.score_captions import CaptionScore, caption_score, score_captions
from memorization.generation import Generated, Sampling, generate, round_trip
from memorization.items import AuditItem
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TEMPLATES = ("template", "TM")


class Measurement(NamedTuple):
    """The journal's record of one item, its pictures by name, and its triggers by rung and variant."""

    record: MeasuredRecord
    pictures: dict[str, Tensor]
    triggers: dict[str, dict[str, Triggers]]


class Compared(NamedTuple):
    """An item's images, and how similar to them are their decoded copy and the images from the caption; or why not."""

    references: References
    ceiling: list[float] | None
    similarity: list[float] | None
    reason: str | None


class Measurer:
    """Measures groups of items on one model.

    Args:
        pipe: the audited pipeline, or the reference.
        settings: the audit's settings.
        copies: the copy detector.
        size: (height, width) of the images the pipeline makes.
        checkpoints: folder for unfinished searches.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        settings: AuditSettings,
        copies: CopyDetector,
        size: tuple[int, int],
        checkpoints: Path | None = None,
    ) -> None:
        self.pipe, self.settings, self.copies, self.size = pipe, settings, copies, size
        self.detectors: dict[str, Detector] = {name: make_detector(name) for name in settings.detectors}
        self.negative = empty_text(pipe)
        self.ladder = Ladder(pipe, settings, copies, self.negative, checkpoints)
        self.images = self.ladder.images

    @property
    def sampling(self) -> Sampling:
        """How images are generated at present."""
        return self.ladder.sampling()

    def measure(self, items: Sequence[AuditItem], effort: Effort) -> list[Measurement]:
        """Measure all items of a group, attacking them as far as the effort says."""
        own = [encoded(self.pipe, [item.suspect.caption]) for item in items]
        references = [load_references(item, self.size) for item in items]
        generated, recorded = self._from_captions(items, own)
        scores = self._detect(items, recorded)
        compared = [self._compared(reference, images) for reference, images in zip(references, generated, strict=True)]
        skipped = [
            effort.skips(item.key, median(result.similarity)) if result.similarity else None
            for item, result in zip(items, compared, strict=True)
        ]
        targets = [i for i, result in enumerate(compared) if result.similarity is not None and skipped[i] is None]
        attempts = self.ladder.attack(
            [items[i] for i in targets], [own[i] for i in targets], [references[i] for i in targets], effort
        )
        return [
            self._measurement(
                item,
                compared[i],
                generated[i],
                scores[i],
                attempts.get(item.key, {}),
                self._stopped(effort, skipped[i], attempts.get(item.key, {})),
            )
            for i, item in enumerate(items)
        ]

    def _seeds(self, item: AuditItem) -> list[int]:
        return [item_seed(self.settings.seed, item.seed_key, "caption", i) for i in range(self.settings.generations)]

    def _from_captions(
        self, items: Sequence[AuditItem], own: Sequence[Embeds]
    ) -> tuple[list[Tensor], dict[str, list[CaptionScore]]]:
        """Images of every item, and the scores of the first detector that can record their generation."""
        n = self.settings.generations
        seeds = [seed for item in items for seed in self._seeds(item)]
        embeds = Embeds.cat(own).repeat(n)
        name, listener = next(
            ((name, detector) for name, detector in self.detectors.items() if is_recording(detector)), ("", None)
        )
        generated: Generated = self.images.fit(
            lambda size: generate(
                self.pipe, embeds, self.negative, seeds, sampling=self.ladder.sampling(size), detector=listener
            )
        )
        images = list(generated.images.split(n))
        if generated.scores is None:
            return images, {}
        half = self.pipe.dtype != torch.float32
        return images, {name: [caption_score(scores, half_precision=half) for scores in generated.scores.split(n)]}

    def _detect(
        self, items: Sequence[AuditItem], recorded: dict[str, list[CaptionScore]]
    ) -> list[dict[str, CaptionScore]]:
        """For every item each detector's score of its caption, with the seeds of its images."""
        captions, seeds = [item.suspect.caption for item in items], [self._seeds(item) for item in items]
        by_detector = {
            name: recorded.get(name) or self._scored(captions, detector, seeds)
            for name, detector in self.detectors.items()
        }
        return [{name: scores[index] for name, scores in by_detector.items()} for index in range(len(items))]

    def _scored(
        self, captions: Sequence[str], detector: Detector, seeds: Sequence[Sequence[int]]
    ) -> list[CaptionScore]:
        return self.images.fit(
            lambda size: score_captions(self.pipe, captions, detector, seeds, sampling=self.ladder.sampling(size))
        )

    def _compared(self, references: References, generated: Tensor) -> Compared:
        """How similar the images from a caption are, and the most that any copy can be."""
        if references.images is None:
            return Compared(references, None, None, references.reason)
        try:
            decoded = round_trip(self.pipe, references.images[:1])
            ceiling = _finite(similarities(self.copies, decoded, references.images[:1]))
            return Compared(references, ceiling, _finite(similarities(self.copies, generated, references.images)), None)
        except ScoringError as error:
            return Compared(references, None, None, str(error))

    def _measurement(
        self,
        item: AuditItem,
        compared: Compared,
        generated: Tensor,
        scores: Mapping[str, CaptionScore],
        attempts: Attempts,
        stopped: Mapping[str, Stopped],
    ) -> Measurement:
        ceiling, similarity, reason = compared.ceiling, compared.similarity, compared.reason
        try:
            for attacked in (attacked for variants in attempts.values() for attacked in variants.values()):
                _finite([value for row in attacked.similarity for value in row])
        except ScoringError as error:
            similarity, ceiling, reason, attempts, stopped = None, None, str(error), {}, {}
        pictures, best = self._pictures(compared.references, generated, similarity, attempts)
        mask, unmasked = self._mask(item)
        searches = [attacked.triggers for variants in attempts.values() for attacked in variants.values()]
        record: MeasuredRecord = {
            "id": item.suspect.id,
            "role": item.role,
            "of": item.of,
            "edit": item.edit,
            "prompt": item.suspect.caption,
            "kind": item.suspect.kind,
            "reason": reason,
            "seeds": self._seeds(item),
            "ceiling": None if ceiling is None else _rounded(ceiling),
            "caption": None if similarity is None else _rounded(similarity),
            "detectors": {name: _score(score) for name, score in scores.items()},
            "attack": _curves(attempts),
            "best": best,
            "mask": unmasked,
            "sample_gradients": sum(search.sample_gradients[-1] for search in searches),
        }
        if stopped:
            record["stopped"] = dict(stopped)
        triggers = {
            rung: {variant: attacked.triggers for variant, attacked in variants.items()}
            for rung, variants in attempts.items()
        }
        return Measurement(record, {**pictures, **mask}, triggers)

    def _stopped(self, effort: Effort, skipped: Stopped | None, attempts: Attempts) -> dict[str, Stopped]:
        """Why each attack ended before its last budget, or was not begun."""
        if skipped is not None:
            return dict.fromkeys(self.ladder.rungs, skipped)
        last = {rung: [attacked.similarity[-1] for attacked in tried.values()] for rung, tried in attempts.items()}
        return {rung: effort.reason for rung, looks in last.items() if effort.is_certain(rung, looks)}

    def _pictures(
        self, references: References, generated: Tensor, similarity: list[float] | None, attempts: Attempts
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, BestImage]]]:
        """The most similar image by caption and by each rung at each budget, and its start and similarity."""
        pictures: dict[str, Tensor] = {}
        best: dict[str, dict[str, BestImage]] = {}
        if references.images is not None:
            pictures["original"] = references.images[0]
        if bool(generated.isfinite().all()):
            pictures["caption"] = generated[_best(similarity)]
        for rung, variants in attempts.items():
            looks = len(next(iter(variants.values())).similarity)
            for index, budget in enumerate(self.settings.budgets[:looks]):
                if budget > 0:
                    start = best_variant(variants, index)
                    highest = max(variants[start].similarity[index])
                    best.setdefault(rung, {})[str(budget)] = {"start": start, "similarity": round(highest, 5)}
                    pictures[f"{rung}-{budget}"] = variants[start].images[index]
        return pictures, best

    def _mask(self, item: AuditItem) -> tuple[dict[str, Tensor], str | None]:
        """Which pixels of a template are memorized, as a picture; or why there is none."""
        if not self.settings.masks or item.role != "suspect" or item.suspect.kind not in TEMPLATES:
            return {}, None
        try:
            seeds, caption = self._seeds(item), item.suspect.caption
            mask = self.images.fit(
                lambda size: mask_for(self.pipe, caption, seeds, sampling=self.ladder.sampling(size))
            )
        except ScoringError as error:
            return {}, str(error)
        return {"mask": mask.clamp(0, 1).expand(3, -1, -1)}, None


def _finite(values: list[float]) -> list[float]:
    if not all(math.isfinite(value) for value in values):
        raise ScoringError(
            "similarity is not a number: the generated image is broken (add --dtype float32 and a new --out)"
        )
    return values


def _curves(attempts: Attempts) -> Curves | None:
    """Rung -> variant -> similarities, budgets x generations."""
    return {
        rung: {name: [_rounded(row) for row in attacked.similarity] for name, attacked in variants.items()}
        for rung, variants in attempts.items()
    } or None


def _score(score: CaptionScore) -> DetectorScore:
    """A detector's score as JSON values, six decimals."""
    scores = [None if value is None else round(value, 6) for value in score.scores]
    return {"value": None if score.value is None else round(score.value, 6), "scores": scores, "reason": score.reason}


def _best(similarity: Sequence[float] | None) -> int:
    return max(range(len(similarity)), key=lambda i: similarity[i]) if similarity else 0


def _rounded(values: Sequence[float]) -> list[float]:
    """Five decimals: enough for any table."""
    return [round(value, 5) for value in values]
