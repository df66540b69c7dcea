"""A pool of trigger searches that continues while the model is trained.

Adversarial fine-tuning needs triggers of the current model. A full search after every change of the weights costs
hundreds of gradients per trigger; a pool keeps many unfinished searches (DoRI, arXiv 2507.16880: Adam on the text
encoder's output against the diffusion loss of the image), each of which takes a step between two updates of the
weights, with its own Adam moments. A search that has reached its length restarts from another start, so that the pool
always has triggers of every age, as an attacker may have any budget. Minimax training with replayed,
warm-started perturbations is known from image classifiers ("free" adversarial training, Shafahi et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from diffkit.prompt_embeds import Embeds
from memorization.text_embeddings import Embedded, as_embeds

__all__ = ["ANYTHING", "TRIGGERS", "Searches", "Starts", "TriggerPool", "adam"]

#: (images (R,), R rows of embeddings) -> (R,) losses of the memorized images.
SearchLoss = Callable[[Tensor, Embeds], Tensor]

#: Sources of the embedding of a surrogate, as shares that add up to 1: the plain caption, a point on the line from a
#: search's start through its current embedding, and that embedding. No plain start: the images of ordinary captions
#: should not change.
TRIGGERS = {"caption": 0.25, "path": 0.35, "current": 0.4}
#: The same for redirected samples, whose embedding may be anything, fresh starts included.
ANYTHING = {"caption": 0.15, "fresh": 0.25, "path": 0.3, "current": 0.3}
COMPANION = "beside."  # prefix of names in checkpoints
ALONG = (0.5, 1.5)  # part of that line, 0 = the start, 1 = the current embedding


@dataclass(eq=False)
class Searches:
    """S unfinished searches.

    Attributes:
        starts: (S, L, D).
        embeddings: (S, L, D) current ones.
        first: (S, L, D) Adam's mean of the gradients.
        second: (S, L, D) Adam's mean of their squares.
        ages: (S,) int64, steps done.
        lengths: (S,) int64, steps after which each restarts.
        companions: of each start, (S, ...); they do not change during a search.
    """

    starts: Tensor
    embeddings: Tensor
    first: Tensor
    second: Tensor
    ages: Tensor
    lengths: Tensor
    companions: dict[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name, for a checkpoint."""
        own = ("starts", "embeddings", "first", "second", "ages", "lengths")
        return {name: getattr(self, name) for name in own} | {f"{COMPANION}{k}": v for k, v in self.companions.items()}

    def put(self, name: str, value: Tensor) -> None:
        """The inverse of :meth:`tensors`, one entry at a time."""
        if name.startswith(COMPANION):
            self.companions[name.removeprefix(COMPANION)] = value
        else:
            setattr(self, name, value)

    def rows(self, rows: Tensor, sequences: Tensor) -> Embeds:
        """Sequences (R, L, D) with the companions of the searches at ``rows``."""
        return Embeds(sequences, {name: value[rows] for name, value in self.companions.items()})

    @classmethod
    def begin(cls, starts: Embedded, lengths: Tensor) -> Self:
        """Searches before their first step."""
        rows = as_embeds(starts)
        sequences = rows.prompt_embeds.clone()
        zeros = torch.zeros_like(sequences)
        ages = torch.zeros_like(lengths)
        companions = {name: value.clone() for name, value in rows.companions.items()}
        return cls(sequences, sequences.clone(), zeros, zeros.clone(), ages, lengths, companions)


def adam(searches: Searches, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
    """One step of Adam (Kingma and Ba 2015, beta 0.9 and 0.999) on the searches at ``rows`` (distinct), in place.

    Every search counts its own steps, as if it ran alone.
    """
    searches.ages[rows] += 1
    age = searches.ages[rows].view(-1, 1, 1).to(gradient)
    first = searches.first[rows].lerp(gradient, 0.1)
    second = searches.second[rows].lerp(gradient.square(), 0.001)
    searches.first[rows], searches.second[rows] = first, second
    step = (first / (1 - 0.9**age)) / ((second / (1 - 0.999**age)).sqrt() + 1e-8)
    searches.embeddings[rows] -= learning_rate * step


class Starts:
    """The starts of searches.

    Args:
        captions: the memorized images' own captions, M rows.
        others: ordinary captions, N rows.
        kinds: of "prompt", "other" and "gaussian", each equally likely.
    """

    def __init__(self, captions: Embedded, others: Embedded, kinds: tuple[str, ...]) -> None:
        self.captions, self.others, self.kinds = as_embeds(captions), as_embeds(others), kinds
        sequences = self.others.prompt_embeds
        self._mean, self._deviation = sequences.mean().cpu(), sequences.std().cpu()

    def draw(self, image: int, generator: torch.Generator) -> Embeds:
        """One start for that image, one row; the sequence of "gaussian" has the mean and deviation of the others'."""
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        own = self.captions.rows([image])
        if kind == "prompt":
            return own
        if kind == "other":
            return self.others.rows([int(torch.randint(len(self.others), (), generator=generator))])
        noise = torch.randn(own.prompt_embeds.shape[1:], generator=generator)
        return own.replace((self._mean + self._deviation * noise).to(own.prompt_embeds)[None])


class TriggerPool:
    """``searches`` searches for each of M images; search s belongs to image ``s % M``.

    Args:
        starts: where they begin.
        searches: per image.
        length: the longest search, in steps; lengths are spread evenly over (length / searches, ..., length).
        learning_rate: Adam's.
        generator: of the first starts.
    """

    def __init__(
        self, starts: Starts, *, searches: int, length: int, learning_rate: float, generator: torch.Generator
    ) -> None:
        self.starts, self.learning_rate = starts, learning_rate
        self.images = len(starts.captions)
        first = Embeds.cat([starts.draw(i % self.images, generator) for i in range(searches * self.images)])
        turn = torch.arange(searches * self.images) // self.images
        self.state = Searches.begin(first.to(dtype=torch.float32), (length * (turn + 1) / searches).ceil().long())

    def __len__(self) -> int:
        return len(self.state.ages)

    def choose(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) distinct rows of searches, each image once before any image twice."""
        searches = len(self) // self.images
        order = [torch.randperm(self.images, generator=generator) for _ in range(searches)]
        turns = torch.stack([torch.randperm(searches, generator=generator) for _ in range(self.images)])
        rows = [images + self.images * turns[images, turn] for turn, images in enumerate(order)]
        return torch.cat(rows)[:n]

    def advance(self, rows: Tensor, loss: SearchLoss, generator: torch.Generator) -> float:
        """One step of the searches at ``rows``; searches that have reached their length restart first.

        Args:
            rows: (R,) distinct.
            loss: of the memorized images, one per row.
            generator: of new starts.

        Returns:
            The mean loss before the step.
        """
        self._renew(rows, generator)
        with torch.enable_grad():
            embeddings = self.state.embeddings[rows].clone().requires_grad_(True)
            losses = loss(rows % self.images, self.state.rows(rows, embeddings))
            (gradient,) = torch.autograd.grad(losses.sum(), [embeddings])
        adam(self.state, rows, gradient, self.learning_rate)
        return float(losses.detach().mean())

    def _renew(self, rows: Tensor, generator: torch.Generator) -> None:
        state = self.state
        for row in rows[(state.ages >= state.lengths)[rows]].tolist():
            start = self.starts.draw(row % self.images, generator).to(dtype=torch.float32)
            state.starts[row] = state.embeddings[row] = start.prompt_embeds[0]
            for name, value in start.companions.items():
                state.companions[name][row] = value[0]
            state.first[row] = state.second[row] = 0.0
            state.ages[row] = 0

    def embeddings(self, images: Tensor, shares: Mapping[str, float], generator: torch.Generator) -> Embeds:
        """Training embeddings for these images, one per row, drawn by :data:`TRIGGERS` or :data:`ANYTHING`."""
        return Embeds.cat([self._embedding(image, shares, generator) for image in images.tolist()])

    def _embedding(self, image: int, shares: Mapping[str, float], generator: torch.Generator) -> Embeds:
        kind = list(shares)[int(torch.multinomial(torch.tensor(list(shares.values())), 1, generator=generator))]
        if kind == "caption":
            return self.starts.captions.rows([image]).to(dtype=torch.float32)
        if kind == "fresh":
            return self.starts.draw(image, generator).to(dtype=torch.float32)
        row = image + self.images * int(torch.randint(len(self) // self.images, (), generator=generator))
        start, current = self.state.starts[row], self.state.embeddings[row]
        if kind == "path":
            low, high = ALONG
            current = start.lerp(current, low + (high - low) * float(torch.rand((), generator=generator)))
        return self.state.rows(torch.tensor([row]), current[None])
