"""DoRI with few numbers: the embedding moves by a matrix of low rank, ``y = y0 + U V^T``.

``U`` is (tokens, r) and ``V`` (dimensions, r), as in LoRA (Hu et al. 2022) for weights. At rank 1 and 77 x 768
that is 845 free numbers instead of 59,136: too few to carry an image, which a free embedding may do. Not from the DoRI
paper. ``U`` begins as standard normal noise of its own generator, ``V`` as zero: the search begins at the start. A
pooled embedding that is attacked too is one vector, and moves freely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import TargetBatch
from memorization.attack.gradient import Companions, EmbeddingAttack, Space
from memorization.attack.objective import Objective

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class LowRankEmbedding(Space):
    """The start plus a matrix of low rank.

    Args:
        starts: B rows.
        sources: one CPU generator an image, for the beginning of ``U``.
        rank: of the displacement.
        companions: of the starts; all fixed where None.
    """

    def __init__(
        self, starts: Embeds, sources: Sequence[torch.Generator], rank: int, companions: Companions | None = None
    ) -> None:
        self._starts = starts.prompt_embeds.detach().float()
        self._companions = companions or Companions(starts)
        tokens, width = self._starts.shape[1:]
        device = self._starts.device
        left = torch.stack([torch.randn(tokens, rank, generator=source) for source in sources]).to(device)
        right = torch.zeros(len(starts), width, rank, device=device)
        self.parameters = [left.requires_grad_(True), right.requires_grad_(True), *self._companions.parameters]

    def embed(self) -> Embeds:
        """Start plus ``U V^T``."""
        left, right = self.parameters[:2]
        return self._companions.with_sequences(self._starts + left @ right.transpose(1, 2))


@dataclass(frozen=True, eq=False, kw_only=True)
class LowRank(EmbeddingAttack):
    """DoRI with a displacement of low rank.

    Attributes:
        rank: of the displacement, at most the number of tokens.

    Raises:
        InputError: a rank below 1.
    """

    name = "low-rank"
    rung = 6

    rank: int = 1

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.rank < 1:
            raise InputError(f"Expected a rank of at least 1, got {self.rank}.")

    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """No displacement yet."""
        starts = batch.starts.to(pipe.device)
        return LowRankEmbedding(starts, batch.sources, self.rank, self.companions(starts))
