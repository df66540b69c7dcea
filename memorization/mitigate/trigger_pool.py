"""A pool of trigger searches that never stops while the model changes under it.

Adversarial fine-tuning needs triggers of the model as it is now. Searching anew after every change of the weights
costs hundreds of gradients a trigger; a pool keeps many searches (DoRI, arXiv 2507.16880: Adam on the text encoder's
output against the diffusion loss of the image) half done and lets each go on by a step between two updates of the
weights, with its own Adam moments. A search that has reached its length begins anew from another start, so that the
pool always holds triggers of every age, which is every budget of an attacker. Minimax training with replayed,
warm-started perturbations is known from image classifiers ("free" adversarial training, Shafahi et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

__all__ = ["ANYTHING", "TRIGGERS", "Searches", "Starts", "TriggerPool", "adam"]

#: (noisy latents (R, C, h, w), timesteps (R,), embeddings (R, L, D), clean latents' rows) -> (R,) loss per draw.
SearchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Where the embedding of a surrogate comes from, as shares that add up to 1: the plain caption, a point around a
#: search's place on the line from its start, and that place. No start as it is: an ordinary caption shall go on giving
#: what it says.
TRIGGERS = {"caption": 0.25, "path": 0.35, "current": 0.4}
#: The same where the memorized image itself is to be seen in the noise: whatever the embedding, fresh starts included.
ANYTHING = {"caption": 0.15, "fresh": 0.25, "path": 0.3, "current": 0.3}
ALONG = (0.5, 1.5)  # stretch of that line, 0 being the start and 1 where the search is


@dataclass(eq=False)
class Searches:
    """S half-done searches.

    Attributes:
        starts: (S, L, D) where each began.
        embeddings: (S, L, D) where each is.
        first: (S, L, D) Adam's mean of the gradients.
        second: (S, L, D) Adam's mean of their squares.
        ages: (S,) int64, steps done.
        lengths: (S,) int64, steps after which each begins anew.
    """

    starts: Tensor
    embeddings: Tensor
    first: Tensor
    second: Tensor
    ages: Tensor
    lengths: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name, for a checkpoint."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def begin(cls, starts: Tensor, lengths: Tensor) -> Self:
        """Searches that have not moved yet."""
        zeros = torch.zeros_like(starts)
        return cls(starts, starts.clone(), zeros, zeros.clone(), torch.zeros_like(lengths), lengths)


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
    """Where a search may begin.

    Args:
        captions: (M, L, D) the memorized images' own captions.
        others: (N, L, D) ordinary captions.
        kinds: of "prompt", "other" and "gaussian", each equally likely.
    """

    def __init__(self, captions: Tensor, others: Tensor, kinds: tuple[str, ...]) -> None:
        self.captions, self.others, self.kinds = captions, others, kinds
        self._mean, self._deviation = others.mean().cpu(), others.std().cpu()

    def draw(self, image: int, generator: torch.Generator) -> Tensor:
        """One (L, D) start for that image; "gaussian" has the mean and deviation of the ordinary captions."""
        kind = self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))]
        if kind == "prompt":
            return self.captions[image]
        if kind == "other":
            return self.others[int(torch.randint(len(self.others), (), generator=generator))]
        noise = torch.randn(self.captions.shape[1:], generator=generator)
        return (self._mean + self._deviation * noise).to(self.captions)


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
        first = torch.stack([starts.draw(i % self.images, generator) for i in range(searches * self.images)])
        turn = torch.arange(searches * self.images) // self.images
        self.state = Searches.begin(first.float(), (length * (turn + 1) / searches).ceil().long())

    def __len__(self) -> int:
        return len(self.state.ages)

    def choose(self, n: int, generator: torch.Generator) -> Tensor:
        """(n,) distinct rows of searches, every image served before one is served twice."""
        searches = len(self) // self.images
        order = [torch.randperm(self.images, generator=generator) for _ in range(searches)]
        turns = torch.stack([torch.randperm(searches, generator=generator) for _ in range(self.images)])
        rows = [images + self.images * turns[images, turn] for turn, images in enumerate(order)]
        return torch.cat(rows)[:n]

    def advance(self, rows: Tensor, loss: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator) -> float:
        """One step of the searches at ``rows``; what has reached its length begins anew first.

        Args:
            rows: (R,) distinct.
            loss: (images (R,), embeddings (R, L, D)) -> (R,) diffusion losses of the memorized images.
            generator: of new starts.

        Returns:
            The mean loss before the step.
        """
        self._renew(rows, generator)
        with torch.enable_grad():
            embeddings = self.state.embeddings[rows].clone().requires_grad_(True)
            losses = loss(rows % self.images, embeddings)
            (gradient,) = torch.autograd.grad(losses.sum(), [embeddings])
        adam(self.state, rows, gradient, self.learning_rate)
        return float(losses.detach().mean())

    def _renew(self, rows: Tensor, generator: torch.Generator) -> None:
        state = self.state
        for row in rows[(state.ages >= state.lengths)[rows]].tolist():
            start = self.starts.draw(row % self.images, generator)
            state.starts[row] = state.embeddings[row] = start.float()
            state.first[row] = state.second[row] = 0.0
            state.ages[row] = 0

    def embeddings(self, images: Tensor, shares: Mapping[str, float], generator: torch.Generator) -> Tensor:
        """(n, L, D) training embeddings for these images, drawn by :data:`TRIGGERS` or :data:`ANYTHING`."""
        return torch.stack([self._embedding(image, shares, generator) for image in images.tolist()])

    def _embedding(self, image: int, shares: Mapping[str, float], generator: torch.Generator) -> Tensor:
        kind = list(shares)[int(torch.multinomial(torch.tensor(list(shares.values())), 1, generator=generator))]
        if kind == "caption":
            return self.starts.captions[image].float()
        if kind == "fresh":
            return self.starts.draw(image, generator).float()
        row = image + self.images * int(torch.randint(len(self) // self.images, (), generator=generator))
        begun, now = self.state.starts[row], self.state.embeddings[row]
        if kind == "current":
            return now
        low, high = ALONG
        return begun.lerp(now, low + (high - low) * float(torch.rand((), generator=generator)))
