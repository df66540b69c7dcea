"""What every attack is: from a target image and a starting point to a trigger, recorded at rising budgets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.seeds import generators

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True, eq=False)
class Target:
    """One image to bring back.

    Attributes:
        image: (3, H, W) in [0, 1], of the size the pipeline makes.
        start: (L, D) text embedding the search begins at.
        seed: of this target's own generator.
    """

    image: Tensor
    start: Tensor
    seed: int


@dataclass(frozen=True, eq=False)
class Triggers:
    """What an attack on one target found.

    Attributes:
        budgets: optimisation steps after which the embedding was kept, rising.
        embeddings: (len(budgets), L, D) float32 on the CPU.
        sample_gradients: noise draws whose gradient was taken up to each budget; the cost in the method's own unit.
    """

    budgets: tuple[int, ...]
    embeddings: Tensor
    sample_gradients: tuple[int, ...]


class Attack(ABC):
    """Base of all attacks; a subclass holds only its algorithm.

    Args:
        budgets: optimisation steps at which to keep the trigger; distinct, rising, from 0.
        micro_batch: targets optimised at once; a constant, the last batch is filled up by repetition.

    Raises:
        InputError: no budgets, negative ones, or not rising.
    """

    name: ClassVar[str]

    def __init__(self, *, budgets: Sequence[int] = (0, 1, 10, 25, 50), micro_batch: int = 8) -> None:
        self.budgets = tuple(budgets)
        self.micro_batch = micro_batch
        rising = all(low < high for low, high in zip(self.budgets, self.budgets[1:], strict=False))
        if not self.budgets or self.budgets[0] < 0 or not rising:
            raise InputError(f"Expected rising attack budgets such as 0,1,10,25,50, got {list(self.budgets)}.")
        if micro_batch < 1:
            raise InputError(f"Expected a batch of at least 1 target, got {micro_batch}.")

    def __call__(self, pipe: DiffusionPipeline, targets: Sequence[Target]) -> list[Triggers]:
        """Attack every target. A target's result depends on its own image, start and seed only."""
        found: list[Triggers] = []
        for first in range(0, len(targets), self.micro_batch):
            real = list(targets[first : first + self.micro_batch])
            padded = real + [real[-1]] * (self.micro_batch - len(real))
            images = torch.stack([target.image for target in padded])
            starts = torch.stack([target.start for target in padded]).float()
            kept = self.attack(pipe, images, starts, generators(target.seed for target in padded)).cpu()
            found += [Triggers(self.budgets, kept[:, i], self.cost()) for i in range(len(real))]
        return found

    @abstractmethod
    def attack(
        self, pipe: DiffusionPipeline, images: Tensor, starts: Tensor, sources: Sequence[torch.Generator]
    ) -> Tensor:
        """One batch: (B, 3, H, W) images and (B, L, D) starts to (len(budgets), B, L, D) embeddings."""

    @abstractmethod
    def cost(self) -> tuple[int, ...]:
        """Sample gradients spent on one target up to each budget."""
