"""What every attack is: from a target image and a starting point to a trigger, recorded at rising budgets."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import generators
from memorization.attack.checkpoint import Checkpoint, Checkpoints, Unsaved
from memorization.text_embeddings import Embedded, as_row, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FORWARD = 1 / 3  # a row through the denoiser without its gradient costs about a third of one with it


@dataclass(frozen=True, eq=False)
class Target:
    """One image to bring back.

    Attributes:
        image: (3, H, W) in [0, 1], of the size the pipeline makes.
        start: encoded text at which a search in the text encoder's output begins: one row, or (L, D) alone where the
            family has no companions.
        seed: of this target's own generator.
        text: caption at which a search before the text encoder begins; None begins at words drawn by the seed.
    """

    image: Tensor
    start: Embedded
    seed: int
    text: str | None = None


@dataclass(frozen=True, eq=False)
class Triggers:
    """What an attack on one target found.

    Attributes:
        budgets: optimisation steps after which the trigger was kept, rising.
        embeds: the triggers, one row for each budget, float32 on the CPU, as the denoiser takes them.
        sample_gradients: noise draws whose gradient was taken up to each budget, the cost in the method's own unit;
            a draw without gradient counts a third.
        texts: what one would type, one for each budget; None where the trigger is no text.
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
class Batch:
    """Targets that are attacked at once.

    Attributes:
        images: (B, 3, H, W) in [0, 1].
        starts: B rows, float32.
        sources: one CPU generator a target; it alone decides what is drawn for that target.
        texts: B captions to begin at, or None.
    """

    images: Tensor
    starts: Embeds
    sources: tuple[torch.Generator, ...]
    texts: tuple[str | None, ...]


class Found(NamedTuple):
    """For every budget B rows of embeddings, and for attacks on text ``texts[budget][target]``."""

    embeddings: Sequence[Embeds]
    texts: list[list[str]] | None = None


class Attack(ABC):
    """Base of all attacks; a subclass holds only its algorithm.

    Attributes:
        name: as registered.
        rung: place on the ladder from the weakest attacker (1) to the strongest; see ``ladder.py``.

    Args:
        budgets: optimisation steps at which to keep the trigger; distinct, rising, from 0.
        micro_batch: targets optimised at once; a constant, the last batch is filled up by repetition.
        rows: rows through the denoiser at once; bounds the memory whatever ``micro_batch`` and ``draws`` are.
        draws: pairs of (noise, timestep) per target and step.

    Raises:
        InputError: no budgets, negative ones, or not rising; a count below 1.
    """

    name: ClassVar[str]
    rung: ClassVar[int]

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        rows: int = 64,
        draws: int = 8,
    ) -> None:
        self.budgets = tuple(budgets)
        self.micro_batch = micro_batch
        self.rows = rows
        self.draws = draws
        rising = all(low < high for low, high in zip(self.budgets, self.budgets[1:], strict=False))
        if not self.budgets or self.budgets[0] < 0 or not rising:
            raise InputError(f"Expected rising attack budgets such as 0,1,10,25,50, got {list(self.budgets)}.")
        for name in ("micro_batch", "rows", "draws"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """Everything that changes results, as JSON values."""
        return {"attack": self.name} | {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def __call__(
        self, pipe: DiffusionPipeline, targets: Sequence[Target], *, checkpoints: Checkpoints | None = None
    ) -> list[Triggers]:
        """Attack every target. A target's result depends on its own image, start, text and seed only.

        The pipeline's weights keep their ``requires_grad``; nothing of it is changed.

        Args:
            pipe: a pipeline of a known family.
            targets: any number.
            checkpoints: where the state of each batch is saved, so that a killed search goes on inside the batch.
        """
        found: list[Triggers] = []
        for first in range(0, len(targets), self.micro_batch):
            real = list(targets[first : first + self.micro_batch])
            padded = real + [real[-1]] * (self.micro_batch - len(real))
            batch = Batch(
                torch.stack([target.image for target in padded]),
                Embeds.cat([as_row(target.start).to(dtype=torch.float32) for target in padded]),
                tuple(generators(target.seed for target in padded)),
                tuple(target.text for target in padded),
            )
            checkpoint = self._checkpoint(pipe, batch, [target.seed for target in padded], checkpoints)
            embeddings, texts = self.search(pipe, batch, checkpoint)
            for i in range(len(real)):
                said = tuple(row[i] for row in texts) if texts is not None else None
                kept = Embeds.cat([rows.rows([i]) for rows in embeddings]).to("cpu", torch.float32)
                found.append(Triggers(self.budgets, kept, self.cost(), said))
        return found

    def _checkpoint(
        self, pipe: DiffusionPipeline, batch: Batch, seeds: Sequence[int], checkpoints: Checkpoints | None
    ) -> Checkpoint:
        """The batch's own checkpoint: another model, target or setting never finds it."""
        if checkpoints is None:
            return Unsaved()
        return checkpoints.open(digest(pipe, self.settings() | {"seeds": list(seeds)}, batch))

    @abstractmethod
    def search(self, pipe: DiffusionPipeline, batch: Batch, checkpoint: Checkpoint) -> Found:
        """Attack one batch, going on from the checkpoint if it holds a state."""

    def cost(self) -> tuple[int, ...]:
        """Sample gradients spent on one target up to each budget."""
        return tuple(math.ceil(budget * self.cost_per_step()) for budget in self.budgets)

    def cost_per_step(self) -> float:
        """Sample gradients of one step on one target."""
        return self.draws


@torch.no_grad()
def digest(pipe: DiffusionPipeline, settings: Mapping[str, Any], batch: Batch) -> str:
    """32 hex digits that name a search: the settings, the targets, and what the model answers to one fixed question.

    The answer (a noise prediction and an encoded word) also tells models apart that differ by a mask, a hook or a
    LoRA. It is compared to the last bit: on another machine or number of threads the search merely begins anew.
    """
    size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
    found = hashlib.sha256(json.dumps(dict(settings), sort_keys=True, default=str).encode())
    dtype, device = pipe_denoiser(pipe).dtype, pipe.device
    noise = initial_latents(pipe, [torch.Generator().manual_seed(0)], size, dtype=torch.float32).to(device, dtype)
    asked = batch.starts.rows([0]).to(device, dtype)
    question = torch.tensor(500, device=device)
    answers = (predict_noise(pipe, noise, question, asked, size=size), encoded(pipe, ["a"]).prompt_embeds)
    for tensor in (*answers, batch.images, batch.starts.prompt_embeds, *batch.starts.companions.values()):
        found.update(str(tuple(tensor.shape)).encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    found.update(json.dumps(batch.texts).encode())
    return found.hexdigest()[:32]
