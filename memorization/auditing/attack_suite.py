"""Attack a group of items by every rung of the ladder, and generate from the triggers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.micro_batch import MicroBatch
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from memorization.attack import attacks
from memorization.attack.base import Attack, Target, Triggers
from memorization.attack.checkpoint import Checkpoints
from memorization.attack.initialization import OTHER_CAPTIONS, StartingPoints, read_starts
from memorization.attack.looks import Looks
from memorization.auditing.effort import Effort
from memorization.auditing.settings import AuditSettings
from memorization.copies import CopyDetector
from memorization.copies.finite import finite_similarity
from memorization.copies.references import References
from memorization.generation import Sampling, generate
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

GRADIENT_ROWS = 64  # where the search for a size that fits begins
CHECKPOINT_EVERY = 10  # attack steps that an interruption may lose


class Attacked(NamedTuple):
    """The triggers of one attack from one start for one item, and their images.

    Attributes:
        triggers: by budget.
        images: (budgets, 3, H, W) the most similar image at each budget.
        similarity: budgets x generations.
    """

    triggers: Triggers
    images: Tensor
    similarity: list[list[float]]

    def then(self, later: Attacked) -> Attacked:
        """This attack and its later looks; the later triggers hold all."""
        return Attacked(later.triggers, torch.cat([self.images, later.images]), self.similarity + later.similarity)


#: rung -> variant ("other", or "other@0.03" where several learning rates are tried) -> result, of one item
Attempts = dict[str, dict[str, Attacked]]


class Job(NamedTuple):
    """One item from one start."""

    item: AuditItem
    start: str
    images: Tensor
    target: Target


class Ladder:
    """All attacks of an audit on one pipeline.

    Args:
        pipe: the audited pipeline, or the reference.
        settings: the audit's settings.
        copies: the copy detector.
        negative: the empty caption, one row.
        checkpoints: folder for the states of unfinished searches; None = none are kept.

    Attributes:
        images: how many are generated at once.
        gradients: how many rows of an attack go through the denoiser at once, where ``micro_batch`` is "auto".
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        settings: AuditSettings,
        copies: CopyDetector,
        negative: Embeds,
        checkpoints: Path | None = None,
    ) -> None:
        self.pipe, self.settings, self.copies, self.negative = pipe, settings, copies, negative
        self.images = MicroBatch.of(settings.micro_batch, pipe.device, what="images to generate")
        self.gradients = MicroBatch(GRADIENT_ROWS, adaptive=self.images.adaptive, what="rows to differentiate")
        self.starts = read_starts(settings.starts)
        self.points = StartingPoints(pipe, settings.other_captions or OTHER_CAPTIONS)
        self.rungs = {name: build_attacks(name, settings) for name in settings.attacks}
        self.checkpoints = Checkpoints(checkpoints, every=CHECKPOINT_EVERY) if checkpoints is not None else None

    def sampling(self, at_once: int | None = None) -> Sampling:
        """How images are generated, ``at_once`` or as many as fit at present."""
        settings = self.settings
        at_once = at_once or self.images.size
        return Sampling(settings.num_inference_steps, settings.guidance_scale, at_once, settings.size)

    def attack(
        self, items: Sequence[AuditItem], own: Sequence[Embeds], references: Sequence[References], effort: Effort
    ) -> dict[str, Attempts]:
        """Attack every item that has an image, from every start, by every rung: by the items' keys.

        Args:
            items: one group.
            own: for each its encoded caption, one row.
            references: for each its images.
            effort: how far they are attacked.
        """
        jobs = [
            self._job(item, start, embeds, reference.images)
            for item, embeds, reference in zip(items, own, references, strict=True)
            for start in self.starts
            if reference.images is not None
        ]
        results: dict[str, Attempts] = {job.item.key: {} for job in jobs}
        for rung in self.rungs if jobs else ():
            for key, attempts in self._climb(rung, jobs, effort).items():
                results[key][rung] = attempts
        return results

    def clear(self) -> None:
        """Delete the states of finished searches, whose results are in the journal."""
        if self.checkpoints is not None:
            self.checkpoints.clear()

    def _job(self, item: AuditItem, start: str, own: Embeds, images: Tensor) -> Job:
        seed = item_seed(self.settings.seed, item.seed_key, f"attack:{start}")
        (name,) = read_starts([start])
        text = self.points.text(name, own=item.suspect.caption, seed=seed)
        return Job(item, start, images, Target(images[0], self.points.start(name, own=own, seed=seed), seed, text))

    def _climb(self, rung: str, jobs: Sequence[Job], effort: Effort) -> dict[str, dict[str, Attacked]]:
        """One rung, from look to look; the items whose answer is certain at a look stay there."""
        searches = {
            rate: Looks(attack, self.pipe, [job.target for job in jobs], self.checkpoints)
            for rate, attack in self.rungs[rung].items()
        }
        results: dict[str, dict[str, Attacked]] = {job.item.key: {} for job in jobs}
        left = list(jobs)
        for first, end in effort.stages(rung, self.settings.budgets):
            for rate, search in searches.items():
                for job, attacked in zip(left, self._look(search, left, first, end), strict=True):
                    variants, variant = results[job.item.key], f"{job.start}{rate}"
                    variants[variant] = variants[variant].then(attacked) if variant in variants else attacked
            going = [i for i, job in enumerate(left) if not effort.is_certain(rung, _last(results[job.item.key]))]
            for search in searches.values():
                search.keep(going)
            left = [left[i] for i in going]
            if not left:
                break
        return results

    def _look(self, search: Looks, jobs: Sequence[Job], first: int, end: int) -> list[Attacked]:
        """Search up to look ``end``; generate and compare at the looks from ``first`` on."""
        triggers = self._search(search, end)
        n, k = self.settings.attack_generations, end - first
        seeds = [
            item_seed(self.settings.seed, job.item.seed_key, "evaluate", i)
            for job in jobs
            for _ in range(k)
            for i in range(n)
        ]
        rows = Embeds.cat([trigger.embeds.rows(list(range(first, end))) for trigger in triggers]).repeat(n)
        images = self.images.fit(
            lambda size: generate(
                self.pipe, rows, self.negative, seeds, sampling=self.sampling(evenly(len(seeds), size))
            )
        ).images.split(n * k)
        return [
            self._judged(trigger, generated.unflatten(0, (k, n)), job.images)
            for job, trigger, generated in zip(jobs, triggers, images, strict=True)
        ]

    def _search(self, search: Looks, end: int) -> list[Triggers]:
        if not self.gradients.adaptive:
            return search.advance(end)
        return self.gradients.fit(lambda rows: search.advance(end, rows=rows))

    def _judged(self, triggers: Triggers, images: Tensor, references: Tensor) -> Attacked:
        similarity = torch.tensor(similarities(self.copies, images.flatten(0, 1), references)).view(images.shape[:2])
        best = images[torch.arange(len(images)), similarity.nan_to_num(nan=-2.0).argmax(1)]
        return Attacked(triggers, best.clone(), similarity.tolist())


def build_attacks(name: str, settings: AuditSettings) -> dict[str, Attack]:
    """An attack at each learning rate: "@rate" -> attack; a single "" with one learning rate."""
    make = attacks.get(name)
    taken = inspect.signature(make).parameters
    common = {
        "budgets": settings.budgets,
        "micro_batch": settings.items_at_once * len(settings.starts),
        **({"draws": settings.draws} if "draws" in taken else {}),
        **({"pooled": settings.pooled} if "pooled" in taken else {}),
    }
    rates = settings.learning_rates if "learning_rate" in taken else None
    if rates is None:
        return {"": make(**common)}
    return {f"@{rate:g}" if len(rates) > 1 else "": make(**common, learning_rate=rate) for rate in rates}


def _last(variants: Mapping[str, Attacked]) -> list[list[float]]:
    """The similarities at the last look, of each start and learning rate."""
    return [attacked.similarity[-1] for attacked in variants.values()]


def evenly(rows: int, size: int) -> int:
    """The batch size with which so many rows fill as few batches of at most ``size``, each about as full.

    Example:
        >>> evenly(24, 16), evenly(16, 16), evenly(3, 16)
        (12, 16, 3)
    """
    return -(-rows // -(-rows // size))


def similarities(copies: CopyDetector, images: Tensor, references: Tensor) -> list[float]:
    """Similarity of each image to the reference it resembles most; NaN where it or the similarity is not finite."""
    return [float(value) for value in finite_similarity(copies, images, references).amax(1)]


def best_variant(variants: dict[str, Attacked], index: int) -> str:
    """The start and learning rate with the highest median at a budget, by its index."""
    return max(variants, key=lambda name: median(variants[name].similarity[index]))
