"""Measure a small group of items: generate from their captions, score these, attack, generate from the triggers.

Groups, batches and slots have constant sizes, and every random draw has its item's own seed. A result therefore depends
neither on the other items nor on where an interrupted run was resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from diffkit.console import Bar
from diffkit.errors import ScoringError
from diffkit.families import pipe_denoiser
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from memorization.attack.base import Triggers
from memorization.auditing.attack_suite import Attempts, Ladder, best_variant, similarities
from memorization.auditing.result import BestImage, Curves, DetectorScore, MeasuredRecord
from memorization.auditing.settings import AuditSettings
from memorization.copies import CopyDetector
from memorization.copies.references import References, load_references
from memorization.detection import make_detector
from memorization.detection.base import Detector, is_recording
from memorization.detection.curvature_difference import mask_for
from memorization.detection.score_captions import CaptionScore, caption_score, score_captions
from memorization.generation import Generated, Sampling, generate, is_guided, round_trip
from memorization.items import AuditItem
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

TEMPLATES = ("template", "TM")
BACKWARD = 3  # a row with its gradient costs about as much as three without


class Measurement(NamedTuple):
    """The journal's record of one item, its pictures by name, and its triggers by rung and variant."""

    record: MeasuredRecord
    pictures: dict[str, Tensor]
    triggers: dict[str, dict[str, Triggers]]


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

    def measure(self, items: Sequence[AuditItem]) -> list[Measurement]:
        """Measure all items of a group."""
        own = [encoded(self.pipe, [item.suspect.caption]) for item in items]
        references = [load_references(item, self.size) for item in items]
        generated, recorded = self._from_captions(items, own)
        scores = self._detect(items, recorded)
        attempts = self.ladder.attack(items, own, references)
        return [
            self._measurement(item, reference, images, item_scores, attempts.get(item.key, {}))
            for item, reference, images, item_scores in zip(items, references, generated, scores, strict=True)
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

    def _measurement(
        self,
        item: AuditItem,
        references: References,
        generated: Tensor,
        scores: Mapping[str, CaptionScore],
        attempts: Attempts,
    ) -> Measurement:
        reason, similarity, ceiling = references.reason, None, None
        try:
            if references.images is not None:
                decoded = round_trip(self.pipe, references.images[:1])
                ceiling = _finite(similarities(self.copies, decoded, references.images[:1]))
                similarity = _finite(similarities(self.copies, generated, references.images))
                for attacked in (attacked for variants in attempts.values() for attacked in variants.values()):
                    _finite([value for row in attacked.similarity for value in row])
        except ScoringError as error:
            reason, similarity, attempts = str(error), None, {}
        pictures, best = self._pictures(references, generated, similarity, attempts)
        mask, unmasked = self._mask(item)
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
            "sample_gradients": self.ladder.cost() if references.images is not None else 0,
        }
        triggers = {
            rung: {variant: attacked.triggers for variant, attacked in variants.items()}
            for rung, variants in attempts.items()
        }
        return Measurement(record, {**pictures, **mask}, triggers)

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
            for index, budget in enumerate(self.settings.budgets):
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


def effort(items: Sequence[AuditItem], measurer: Measurer) -> int:
    """Rows through the denoiser for one group of items; a row with a gradient counts as three.

    Exact for the attacks and detectors that call the denoiser as often as their ``cost`` states.
    """
    settings, ladder, at_once = measurer.settings, measurer.ladder, measurer.images.size
    guided = 2 if is_guided(measurer.pipe, measurer.sampling) else 1
    each = settings.num_inference_steps * guided
    targets = sum(bool(item.suspect.images) for item in items) * len(settings.starts)
    captions = _filled(len(items) * settings.generations, at_once) * each
    triggers = _filled(targets * len(settings.budgets) * settings.attack_generations, at_once) * each
    slots = settings.items_at_once * len(settings.starts)
    attacked = 0
    for attack in (attack for variants in ladder.rungs.values() for attack in variants.values()):
        attacked += triggers + _filled(targets, slots) * attack.cost()[-1] * BACKWARD
        attacked += -(-targets // slots) * (ladder.checkpoints is not None)  # the call that identifies a search
    separate = [detector for detector in measurer.detectors.values() if not is_recording(detector)]
    detected = sum(detector.cost(measurer.sampling) for detector in separate) * len(items) * settings.generations
    return captions + attacked + round(detected)


def _filled(rows: int, batch: int) -> int:
    """Rows with the last batch filled up."""
    return -(-rows // batch) * batch


@contextmanager
def counted(pipe: DiffusionPipeline, bar: Bar) -> Iterator[None]:
    """Advance the bar with every call of the pipeline's denoiser inside the ``with`` block."""

    def count(_module: torch.nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], _output: object) -> None:
        latents = inputs[0] if inputs else next(iter(named.values()))  # a tensor, or a list of one a row
        bar.advance(len(latents) * (BACKWARD if torch.is_grad_enabled() else 1))

    handle = pipe_denoiser(pipe).register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
