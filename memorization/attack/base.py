"""The base of all attacks: from a target image and a starting point to triggers, kept at rising budgets."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, overload

import torch
from PIL import Image
from torch import Tensor

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.images import to_pil, to_tensor
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import generators
from memorization.attack.checkpoint import Checkpoint, Checkpoints, Unsaved
from memorization.text_embeddings import Embedded, as_row, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FORWARD = 1 / 3  # a row through the denoiser without its gradient costs about a third of one with it


@dataclass(frozen=True, eq=False)
class Target:
    """One image to bring back, and where the search for it begins.

    Attributes:
        image: (3, H, W) in [0, 1] or a PIL image, of a size that the pipeline makes.
        start: encoded text at which a search in the text encoder's output begins: one row, or (L, D) alone where the
            family has no companions; None = the encoding of ``text``, or of the empty caption without one.
        seed: of this target's own generator.
        text: caption at which a search before the text encoder begins; None = words drawn by the seed.

    Example:
        >>> target = Target(torch.rand(3, 64, 64), text="a gray cat", seed=7)  # Dori()(pipe, target)
        >>> target.image.shape, target.text
        (torch.Size([3, 64, 64]), 'a gray cat')
    """

    image: Tensor | Image.Image
    start: Embedded | None = None
    seed: int = 0
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Triggers:
    """The triggers of one target, by budget.

    Attributes:
        budgets: optimisation steps after which the trigger was kept, rising.
        embeds: the triggers, one row for each budget, float32 on the CPU, as the denoiser takes them.
        sample_gradients: noise draws whose gradient was taken up to each budget, the cost in the method's own unit;
            a draw without gradient counts a third.
        texts: the prompt to type, one for each budget; None where the trigger is no text.
    """

    budgets: tuple[int, ...]
    embeds: Embeds
    sample_gradients: tuple[int, ...]
    texts: tuple[str, ...] | None = None

    @property
    def embeddings(self) -> Tensor:
        """(len(budgets), L, D), the sequences alone."""
        return self.embeds.prompt_embeds


@dataclass(frozen=True, eq=False)
class TargetBatch:
    """Targets that are attacked at once.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        starts: B rows, float32.
        sources: one CPU generator a target, from which all that is random for this target is drawn.
        texts: B captions to begin at, or None.
    """

    images: Tensor
    starts: Embeds
    sources: tuple[torch.Generator, ...]
    texts: tuple[str | None, ...]

    @classmethod
    def of(cls, pipe: DiffusionPipeline, targets: Sequence[Target]) -> Self:
        """The batch of these targets, with fresh generators."""
        starts = [
            encoded(pipe, [target.text or ""]) if target.start is None else as_row(target.start) for target in targets
        ]
        return cls(
            torch.stack([_pixels(target.image) for target in targets]),
            Embeds.cat([start.to("cpu", torch.float32) for start in starts]),
            tuple(generators(target.seed for target in targets)),
            tuple(target.text for target in targets),
        )


class BatchTriggers(NamedTuple):
    """For every budget B rows of embeddings, and for attacks on text ``texts[budget][target]``."""

    embeddings: Sequence[Embeds]
    texts: list[list[str]] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Attack(ABC):
    """Base of all attacks: a frozen dataclass of options; a subclass adds its own options and the algorithm.

    Attributes:
        name: as registered.
        rung: place on the ladder from the weakest attacker (1) to the strongest; see ``ladder.py``.
        budgets: optimisation steps at which to keep the trigger; distinct, rising, from 0.
        micro_batch: targets optimised at once; a constant, the last batch is filled up by repetition.
        rows: rows through the denoiser at once; bounds the memory whatever ``micro_batch`` and ``draws`` are.
        draws: pairs of (noise, timestep) per target and step.

    Raises:
        InputError: no budgets, negative ones, or not rising; a count below 1.
    """

    name: ClassVar[str]
    rung: ClassVar[int]

    budgets: Sequence[int] = (0, 1, 10, 25, 50)
    micro_batch: int = 8
    rows: int = 64
    draws: int = 8

    def __post_init__(self) -> None:
        """Check the options."""
        object.__setattr__(self, "budgets", tuple(self.budgets))
        rising = all(low < high for low, high in pairwise(self.budgets))
        if not self.budgets or self.budgets[0] < 0 or not rising:
            raise InputError(f"Expected rising attack budgets such as 0,1,10,25,50, got {list(self.budgets)}.")
        for name in ("micro_batch", "rows", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """Everything that changes results, as JSON values."""
        return {"attack": self.name} | {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def with_batches(self, *, micro_batch: int | None = None, rows: int | None = None) -> Self:
        """The same attack with other batch sizes; this one stays as it is."""
        changed = copy(self)
        object.__setattr__(changed, "micro_batch", micro_batch or self.micro_batch)
        object.__setattr__(changed, "rows", rows or self.rows)
        return changed

    def up_to(self, looks: int) -> Self:
        """The same attack with the first so many budgets alone."""
        changed = copy(self)
        object.__setattr__(changed, "budgets", tuple(self.budgets[:looks]))
        return changed

    @overload
    def __call__(
        self, pipe: DiffusionPipeline, targets: Sequence[Target], *, checkpoints: Checkpoints | None = None
    ) -> list[Triggers]: ...

    @overload
    def __call__(
        self, pipe: DiffusionPipeline, targets: Target | Tensor | Image.Image, *, checkpoints: Checkpoints | None = None
    ) -> Triggers: ...

    def __call__(
        self,
        pipe: DiffusionPipeline,
        targets: Sequence[Target] | Target | Tensor | Image.Image,
        *,
        checkpoints: Checkpoints | None = None,
    ) -> list[Triggers] | Triggers:
        """Search for triggers. A target's result depends on its own image, start, text and seed only.

        The pipeline's weights keep their ``requires_grad``; nothing of it is changed.

        Args:
            pipe: a pipeline of a known family.
            targets: any number; or a single one, or its image alone, which is then searched in a batch of one.
            checkpoints: where the state of each batch is saved, so that a killed search goes on inside the batch.

        Returns:
            One result per target; of a single target the result itself.

        Raises:
            InputError: an image is not (3, H, W) in [0, 1].
        """
        if isinstance(targets, (Target, Tensor, Image.Image)):
            target = targets if isinstance(targets, Target) else Target(targets)
            return self.with_batches(micro_batch=1)._attack(pipe, [target], checkpoints)[0]
        return self._attack(pipe, targets, checkpoints)

    def _attack(
        self, pipe: DiffusionPipeline, targets: Sequence[Target], checkpoints: Checkpoints | None
    ) -> list[Triggers]:
        """Batch after batch, each filled up to ``micro_batch`` by repeating its last target."""
        results: list[Triggers] = []
        for first in range(0, len(targets), self.micro_batch):
            real = list(targets[first : first + self.micro_batch])
            padded = real + [real[-1]] * (self.micro_batch - len(real))
            batch = TargetBatch.of(pipe, padded)
            checkpoint = self._checkpoint(pipe, batch, [target.seed for target in padded], checkpoints)
            embeddings, texts = self.search(pipe, batch, checkpoint)
            for i in range(len(real)):
                prompts = tuple(row[i] for row in texts) if texts is not None else None
                embeds = Embeds.cat([rows.rows([i]) for rows in embeddings]).to("cpu", torch.float32)
                results.append(Triggers(tuple(self.budgets), embeds, self.cost(), prompts))
        return results

    def _checkpoint(
        self, pipe: DiffusionPipeline, batch: TargetBatch, seeds: Sequence[int], checkpoints: Checkpoints | None
    ) -> Checkpoint:
        """The checkpoint of this batch under this model and these settings."""
        if checkpoints is None:
            return Unsaved()
        return checkpoints.open(digest(pipe, self.settings() | {"seeds": list(seeds)}, batch))

    @abstractmethod
    def search(self, pipe: DiffusionPipeline, batch: TargetBatch, checkpoint: Checkpoint) -> BatchTriggers:
        """Attack one batch, going on from the checkpoint if it holds a state."""

    def cost(self) -> tuple[int, ...]:
        """Sample gradients spent on one target up to each budget."""
        return tuple(math.ceil(budget * self.cost_per_step()) for budget in self.budgets)

    def cost_per_step(self) -> float:
        """Sample gradients of one step on one target."""
        return self.draws


def _pixels(image: Tensor | Image.Image) -> Tensor:
    """A target's image as (3, H, W) in [0, 1].

    Raises:
        InputError: a tensor of another shape or type, or with values outside [0, 1].
    """
    if isinstance(image, Image.Image):
        return to_tensor(to_pil(image))
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise InputError(f"Expected a float image of shape (3, H, W), got {image.dtype} of {tuple(image.shape)}.")
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # resizing may overshoot by a rounding error
        raise InputError(f"Expected an image in [0, 1], got values from {low:.4g} to {high:.4g}.")
    return image


@torch.no_grad()
def digest(pipe: DiffusionPipeline, settings: Mapping[str, Any], batch: TargetBatch) -> str:
    """32 hex digits that name a search: of the settings, the targets, and the model's outputs for one fixed input.

    The outputs (a noise prediction and an encoded word) also tell models apart that differ by a mask, a hook or a
    LoRA. They are compared to the last bit: on another machine or number of threads the search merely begins anew.
    """
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    total = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    dtype, device = pipe_denoiser(pipe).dtype, pipe.device
    noise = initial_latents(pipe, [torch.Generator().manual_seed(0)], size, dtype=torch.float32).to(device, dtype)
    start, timestep = batch.starts.rows([0]).to(device, dtype), torch.tensor(500, device=device)
    outputs = (predict_noise(pipe, noise, timestep, start, size=size), encoded(pipe, ["a"]).prompt_embeds)
    for tensor in (*outputs, batch.images, batch.starts.prompt_embeds, *batch.starts.companions.values()):
        total.update(str(tuple(tensor.shape)).encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    total.update(json.dumps(batch.texts).encode())
    return total.hexdigest()[:32]
