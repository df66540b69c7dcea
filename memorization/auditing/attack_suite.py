"""Attack a group of items by every rung of the ladder, and generate from the triggers."""

from __future__ import annotations

import inspect
import math
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
        images: (budgets, 3, H, W) the most similar image at each budget; zeros where none was generated.
        similarity: budgets x generations; fewer of these where the others could not bring the image back, none at a
            start that was not looked at.
    """

    triggers: Triggers
    images: Tensor
    similarity: list[list[float]]

    def then(self, later: Attacked) -> Attacked:
        """This attack and its later looks; the later triggers hold all."""
        return Attacked(later.triggers, torch.cat([self.images, later.images]), self.similarity + later.similarity)

    def after(self, looks: int) -> Attacked:
        """This attack after so many looks at which nothing was generated."""
        nothing = self.images.new_zeros(looks, *self.images.shape[1:])
        return Attacked(self.triggers, torch.cat([nothing, self.images]), [[] for _ in range(looks)] + self.similarity)


#: rung -> variant ("other", or "other@0.03" where several learning rates are tried) -> result, of one item
Attempts = dict[str, dict[str, Attacked]]


class Job(NamedTuple):
    """One item from one start."""

    item: AuditItem
    start: str
    images: Tensor
    target: Target


class View:
    """The images of one trigger: the most similar one, and the similarity of each.

    Args:
        job: what the trigger was found for.
        trigger: one row.
    """

    def __init__(self, job: Job, trigger: Embeds) -> None:
        self.job, self.trigger = job, trigger
        self.similarity: list[float] = []
        self._best: tuple[float, Tensor] | None = None

    def add(self, images: Tensor, similarity: Sequence[float]) -> None:
        """Take in (n, 3, H, W) images."""
        self.similarity += similarity
        for image, value in zip(images, similarity, strict=True):
            rank = value if math.isfinite(value) else -2.0
            if self._best is None or rank > self._best[0]:
                self._best = (rank, image.clone())

    def best(self) -> Tensor:
        """(3, H, W), the most similar image; the first of equals."""
        assert self._best is not None, "a view has images"
        return self._best[1]


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
                looks = self._look(search, left, range(first, end), effort.settled.get(rung))
                for job, attacked in zip(left, looks, strict=True):
                    variants, variant = results[job.item.key], f"{job.start}{rate}"
                    earlier = variants.get(variant)
                    variants[variant] = attacked.after(first) if earlier is None else earlier.then(attacked)
            going = [i for i, job in enumerate(left) if not effort.is_certain(rung, _last(results[job.item.key]))]
            if not going:
                break
            for search in searches.values():
                search.keep(going)
            left = [left[i] for i in going]
        return results

    def _look(self, search: Looks, jobs: Sequence[Job], looks: range, settled: float | None) -> list[Attacked]:
        """Search up to the last of the looks; generate and compare at all of them.

        Args:
            settled: a median below it need not be known: once more than half of the images of a look lie below it, the
                others are not generated. None = all are.
        """
        triggers = self._search(search, looks.stop)
        n = self.settings.attack_generations
        first = n if settled is None else n // 2 + 1
        views = [
            View(job, trigger.embeds.rows([look]))
            for job, trigger in zip(jobs, triggers, strict=True)
            for look in looks
        ]
        self._generate(views, range(first))
        if settled is not None and first < n:
            self._generate(
                [view for view in views if not all(value < settled for value in view.similarity)], range(first, n)
            )
        each = [views[i : i + len(looks)] for i in range(0, len(views), len(looks))]
        return [
            Attacked(trigger, torch.stack([view.best() for view in own]), [view.similarity for view in own])
            for trigger, own in zip(triggers, each, strict=True)
        ]

    def _generate(self, views: Sequence[View], generations: range) -> None:
        """Generate and compare these images of each trigger."""
        if not views:
            return
        seeds = [item_seed(self.settings.seed, v.job.item.seed_key, "evaluate", i) for v in views for i in generations]
        rows = Embeds.cat([view.trigger for view in views]).repeat(len(generations))
        images = self.images.fit(
            lambda size: generate(
                self.pipe, rows, self.negative, seeds, sampling=self.sampling(evenly(len(seeds), size))
            )
        ).images.split(len(generations))
        for view, generated in zip(views, images, strict=True):
            view.add(generated, similarities(self.copies, generated, view.job.images))

    def _search(self, search: Looks, end: int) -> list[Triggers]:
        if not self.gradients.adaptive:
            return search.advance(end)
        return self.gradients.fit(lambda rows: search.advance(end, rows=rows))


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
