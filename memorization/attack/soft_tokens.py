"""Soft tokens: k free word vectors at the input of the text encoder, which is used unchanged.

Textual inversion (Gal et al., "An Image is Worth One Word", ICLR 2023, section 4.2) with one image and one prompt that
is nothing but the k vectors; the attack on concept erasure of Pham et al. ("Circumventing Concept Erasure", ICLR 2024)
is the case k = 1. Weaker than a free encoder output: k x 768 numbers, and only what the encoder can make of them.
It needs a user who may load an embedding file, no access inside the pipeline.

Where we differ: no template sentence around the vectors; many images at once; the budgets and rate of DoRI, scaled to
word vectors (``learning_rate`` 0.01: a word vector's elements deviate by about 0.01 to 0.03 in CLIP, a twentieth of
the encoder output's). With several text encoders a soft token is one vector in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from diffkit.prompt_embeds import Embeds
from memorization.attack.base import TargetBatch
from memorization.attack.gradient import GradientAttack, Space
from memorization.attack.objective import Objective
from memorization.attack.token_embeddings import TextSpace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class WordVectors(Space):
    """k vectors in place of words.

    Args:
        text: the encoder.
        ids: (B, k) tokens whose vectors the search begins at.
    """

    def __init__(self, text: TextSpace, ids: Tensor) -> None:
        self._text = text
        self.parameters = [table[ids].clone().requires_grad_(True) for table in text.tables]

    def embed(self) -> Embeds:
        """The text encoders' output for the vectors."""
        return self._text.encode_vectors(self.parameters)


@dataclass(frozen=True, eq=False, kw_only=True)
class SoftTokens(GradientAttack):
    """Optimise ``tokens`` word vectors; an encoder with fewer places is filled completely.

    The search begins at the first words of the target's text, or at random words.
    """

    tokens: ClassVar[int]

    learning_rate: float = 0.01

    def space(self, pipe: DiffusionPipeline, batch: TargetBatch, loss: Objective) -> Space:
        """The vectors of the first words."""
        text = TextSpace(pipe)
        with torch.no_grad():
            ids = text.begin(batch.texts, batch.sources, min(self.tokens, text.slots))
        return WordVectors(text, ids)


class SoftTokens1(SoftTokens):
    """One soft token."""

    name = "soft-tokens-1"
    rung = 3
    tokens = 1


class SoftTokens4(SoftTokens):
    """Four soft tokens."""

    name = "soft-tokens-4"
    rung = 4
    tokens = 4


class SoftTokens16(SoftTokens):
    """Sixteen soft tokens."""

    name = "soft-tokens-16"
    rung = 5
    tokens = 16
