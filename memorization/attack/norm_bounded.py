"""DoRI on a leash: the embedding may move by no more than a share of its own norm.

Free search over the text encoder's output has enough numbers to carry an image by itself (77 x 768 = 59,136 for
Stable Diffusion 1, against 16,384 latent numbers). Projected descent keeps ``|| y - y0 || <= radius * || y0 ||``
(Euclidean norms over all tokens and dimensions) after every Adam step, as projected gradient attacks on images do
(Madry et al. 2018, section 2.1, there for the pixels). Not from the DoRI paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from memorization.attack.base import Batch
from memorization.attack.dori import FreeEmbedding
from memorization.attack.gradient import GradientAttack, Space
from memorization.attack.objective import Objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def project(moved: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """The nearest point of each ball: (B, L, D) points, (B, L, D) centres, (B,) Euclidean radii."""
    away = moved - centre
    length = away.flatten(1).norm(dim=1).clamp(min=1e-12)
    return torch.where((length > radius)[:, None, None], centre + away * (radius / length)[:, None, None], moved)


class BoundedEmbedding(FreeEmbedding):
    """The text encoder's output in a ball around its start.

    Args:
        starts: (B, L, D).
        radius: in units of each start's own norm.
    """

    def __init__(self, starts: Tensor, radius: float) -> None:
        super().__init__(starts)
        self._centre = starts.detach().float().clone()
        self._radius = radius * self._centre.flatten(1).norm(dim=1)

    def constrain(self) -> None:
        """Back to the ball."""
        self.parameters[0].copy_(project(self.parameters[0], self._centre, self._radius))


class NormBounded(GradientAttack):
    """DoRI with the embedding kept in a ball around its start.

    Args:
        radius: of the ball, in units of the start's own norm; 0.25 keeps the cosine to the start above 0.96.

    Raises:
        InputError: a radius that is not positive.
    """

    name = "norm-bounded"
    rung = 7

    def __init__(
        self,
        *,
        budgets: Sequence[int] = (0, 1, 10, 25, 50),
        micro_batch: int = 8,
        rows: int = 64,
        draws: int = 8,
        learning_rate: float = 0.1,
        radius: float = 0.25,
    ) -> None:
        super().__init__(budgets=budgets, micro_batch=micro_batch, rows=rows, draws=draws, learning_rate=learning_rate)
        if not radius > 0:
            raise InputError(f"Expected a positive radius, such as 0.25 of the embedding's norm, got {radius}.")
        self.radius = radius

    def space(self, pipe: DiffusionPipeline, batch: Batch, loss: Objective) -> Space:
        """A ball around the start."""
        return BoundedEmbedding(batch.starts.to(pipe.device), self.radius)
