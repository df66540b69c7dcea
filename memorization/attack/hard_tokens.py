"""Hard tokens: a prompt of real tokens, found by projected gradient descent in the vocabulary.

PEZ (Wen et al., "Hard Prompts Made Easy", NeurIPS 2023, algorithm 1): vectors are kept free; at each step they are
projected to the nearest token vectors, the gradient is taken at the projection and applied to the free vectors. Their
objective is a CLIP similarity, ours the diffusion loss of the target image, as UnlearnDiffAtk and P4D have it for
concepts. AdamW at rate 0.1 with weight decay 0.1, as published; nearest by Euclidean distance between normalised
vectors.

Where we differ: only tokens that survive being typed (:func:`memorization.attack.token_embeddings.typeable`), so that
the prompt itself *is* the attack; the best prompt so far is kept, by its loss on draws fixed for the image, since
projected prompts jump; the number of tokens is at most what the encoder holds. With several text encoders a token
is a word that is one token in each, and the nearest one is that of the largest sum of cosines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import FORWARD, TargetBatch
from memorization.attack.checkpoint import State
from memorization.attack.gradient import GradientAttack, Space
from memorization.attack.objective import Draws, Objective
from memorization.attack.token_embeddings import TextSpace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def nearest(vectors: Sequence[Tensor], tables: Sequence[Tensor]) -> Tensor:
    """(B, k) rows of the tables, (V, D) each, whose cosines with the (B, k, D) vectors have the largest sum."""
    pairs = zip(vectors, tables, strict=True)
    cosines = [F.normalize(vector, dim=-1) @ F.normalize(table, dim=-1).T for vector, table in pairs]
    return torch.stack(cosines).sum(0).argmax(-1)


class ProjectedVectors(Space):
    """Free vectors that are encoded as the nearest words.

    Args:
        text: the encoder.
        ids: (B, k) tokens to begin at.
        loss: of the target images.
        draws: noise draws, fixed for the search, on which prompts are compared.
    """

    def __init__(self, text: TextSpace, ids: Tensor, loss: Objective, draws: Draws) -> None:
        self._text, self._loss, self._draws = text, loss, draws
        self.parameters = [table[ids].clone().requires_grad_(True) for table in text.tables]
        self._words = [table[text.words] for table in text.tables]
        self._last = torch.full_like(ids, -1)
        self._best = ids.clone()
        self._least = torch.full((len(ids),), torch.inf, device=ids.device)
        self._history: list[Tensor] = []

    def projected(self) -> Tensor:
        """(B, k) ids of the words nearest to the vectors."""
        return self._text.words[nearest([parameter.detach() for parameter in self.parameters], self._words)]

    def embed(self) -> Embeds:
        """Rows of the nearest words; the gradient passes through to the vectors unchanged."""
        ids = self.projected()
        pairs = zip(self.parameters, self._text.tables, strict=True)
        return self._text.encode_vectors([vectors + (table[ids] - vectors).detach() for vectors, table in pairs])

    @torch.no_grad()
    def note(self) -> None:
        """Score the present words if they are new, and keep the best."""
        ids = self.projected()
        if torch.equal(ids, self._last):
            return
        self._last = ids
        losses = self._loss.loss(self._text.encode_ids(ids), self._draws)[:, 0]
        better = losses < self._least
        self._least = torch.where(better, losses, self._least)
        self._best = torch.where(better[:, None], ids, self._best)

    @torch.no_grad()
    def kept(self) -> Embeds:
        """Rows of the best words so far."""
        self._history.append(self._best.clone())
        return self._text.encode_ids(self._best)

    def texts(self) -> list[list[str]]:
        """The best prompts at each budget."""
        return [[self._text.text(row) for row in ids] for ids in self._history]

    def memory(self) -> State:
        """The best words, those scored last, and those kept."""
        state = {"seen": self._last, "best": self._best, "least": self._least}
        return state | ({"history": torch.stack(self._history)} if self._history else {})

    def remember(self, state: State) -> None:
        """The inverse of :meth:`memory`."""
        device = self._best.device
        self._last, self._best, self._least = (state[name].to(device) for name in ("seen", "best", "least"))
        self._history = list(state["history"].to(device)) if "history" in state else []


@dataclass(frozen=True, eq=False, kw_only=True)
class HardTokens(GradientAttack):
    """PEZ with the diffusion loss.

    Attributes:
        tokens: of the prompt; an encoder with fewer places is filled completely.

    Raises:
        InputError: fewer than 1 token.
    """

    name = "hard-tokens"
    rung = 2
    weight_decay = 0.1

    tokens: int = 16

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.tokens < 1:
            raise InputError(f"Expected at least 1 token, got {self.tokens}.")

    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """The vectors of the first words, projected to typeable ones."""
        text = TextSpace(pipe)
        with torch.no_grad():
            ids = text.begin(batch.texts, batch.sources, min(self.tokens, text.slots))
            draws = loss.draw(batch.sources, 2 * self.draws, stratified=True)
        return ProjectedVectors(text, ids, loss, draws)

    def cost_per_step(self) -> float:
        """A gradient for each draw, and at most twice as many draws without gradient to compare prompts."""
        return self.draws * (1 + 2 * FORWARD)
