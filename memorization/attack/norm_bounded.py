"""Norm-bounded DoRI: the embedding stays within a ball around its start.

Free search over the text encoder's output has enough numbers to carry an image by itself (77 x 768 = 59,136 for
Stable Diffusion 1, against 16,384 latent numbers). Projected descent keeps ``|| y - y0 || <= radius * || y0 ||``
(Euclidean norms over all tokens and dimensions) after every Adam step, as projected gradient attacks on images do
(Madry et al. 2018, section 2.1). A pooled embedding that is attacked too has a ball of its own.
Not from the DoRI paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import TargetBatch
from memorization.attack.dori import FreeEmbedding
from memorization.attack.gradient import Companions, EmbeddingAttack, Space
from memorization.attack.objective import Objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def project(moved: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """The nearest point of each ball: (B, ...) points, (B, ...) centres, (B,) Euclidean radii."""
    away = moved - centre
    length = away.flatten(1).norm(dim=1).clamp(min=1e-12)
    column = (-1, *[1] * (moved.ndim - 1))
    return torch.where((length > radius).view(column), centre + away * (radius / length).view(column), moved)


class BoundedEmbedding(FreeEmbedding):
    """The text encoder's output in a ball around its start.

    Args:
        starts: B rows.
        radius: in units of each start's own norm.
        companions: of the starts; all fixed where None.
    """

    def __init__(self, starts: Embeds, radius: float, companions: Companions | None = None) -> None:
        super().__init__(starts, companions)
        self._centres = [parameter.detach().clone() for parameter in self.parameters]
        self._radii = [radius * centre.flatten(1).norm(dim=1) for centre in self._centres]

    def constrain(self) -> None:
        """Project the parameters to the balls."""
        for parameter, centre, radius in zip(self.parameters, self._centres, self._radii, strict=True):
            parameter.copy_(project(parameter, centre, radius))


@dataclass(frozen=True, eq=False, kw_only=True)
class NormBounded(EmbeddingAttack):
    """DoRI with the embedding kept in a ball around its start.

    Attributes:
        radius: of the ball, in units of the start's own norm; 0.25 keeps the cosine to the start above 0.96.

    Raises:
        InputError: a radius that is not positive.
    """

    name = "norm-bounded"
    rung = 7

    radius: float = 0.25

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not self.radius > 0:
            raise InputError(f"Expected a positive radius, such as 0.25 of the embedding's norm, got {self.radius}.")

    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """A ball around the start."""
        starts = batch.starts.to(pipe.device)
        return BoundedEmbedding(starts, self.radius, self.companions(starts))
