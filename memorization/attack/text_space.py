"""The space before the text encoder: sequences of word vectors, and words that survive being typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.errors import InputError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class TextSpace:
    """A pipeline's tokenizer and text encoder, entered at the token embeddings.

    Attributes:
        table: (V, D) float32 token embeddings.
        slots: tokens between the first and the last special one: 75 for Stable Diffusion 1.
        words: ids of the tokens that come back as themselves when their text is typed, rising; see
            :func:`typeable`.

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe, self._tokenizer, self._encoder = pipe, pipe.tokenizer, pipe.text_encoder
        self._lookup = pipe.text_encoder.get_input_embeddings()
        self.table: Tensor = self._lookup.weight.detach().float()
        self.slots = int(pipe.tokenizer.model_max_length) - 2
        self.words = typeable(pipe.tokenizer, len(self.table)).to(self.table.device)

    def encode_ids(self, ids: Tensor) -> Tensor:
        """(B, k) token ids between the special ones to (B, L, D) embeddings, as the pipeline encodes a prompt."""
        return self._call(self._framed(ids))

    def encode_vectors(self, vectors: Tensor) -> Tensor:
        """(B, k, D) vectors in place of k token embeddings to (B, L, D) embeddings; differentiable.

        The vectors take the places of k filler tokens inside the stock encoder, through a hook on its lookup table,
        so that positions, mask and final norm stay the encoder's own.
        """
        filler = torch.full(vectors.shape[:2], int(self.words[0]), device=vectors.device)

        def put(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return torch.cat([output[:, :1], vectors.to(output.dtype), output[:, 1 + vectors.shape[1] :]], 1)

        handle = self._lookup.register_forward_hook(put)
        try:
            return self._call(self._framed(filler))
        finally:
            handle.remove()

    def _call(self, ids: Tensor) -> Tensor:
        mask = None
        if getattr(self._encoder.config, "use_attention_mask", False):
            mask = (torch.cumsum(ids == self._tokenizer.eos_token_id, 1) <= 1).long()
        encoded: Tensor = self._encoder(ids, attention_mask=mask)[0]
        return encoded.float()

    def _framed(self, ids: Tensor) -> Tensor:
        """(B, k) ids to (B, L): start, ids, end, padding."""
        if ids.shape[1] > self.slots:
            raise InputError(f"The text encoder holds {self.slots} tokens of a prompt, got {ids.shape[1]}.")
        tokenizer = self._tokenizer
        special = torch.tensor([tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id])
        start, end, pad = (value.expand(len(ids), 1).to(ids.device) for value in special)
        return torch.cat([start, ids, end, pad.expand(-1, self.slots - ids.shape[1])], 1)

    def ids(self, text: str) -> Tensor:
        """(n,) token ids of a text without the special ones, at most ``slots``."""
        found = self._tokenizer(text, add_special_tokens=False, truncation=True, max_length=self.slots).input_ids
        return torch.tensor(found, dtype=torch.long)

    def text(self, ids: Tensor) -> str:
        """What one types to get these (k,) ids, where all of them are typeable."""
        return str(self._tokenizer.decode(ids.tolist())).strip()

    def begin(self, texts: Sequence[str | None], sources: Sequence[torch.Generator], k: int) -> Tensor:
        """(B, k) ids to begin at: the text's first k tokens, filled up with words drawn by each image's generator.

        All k words are drawn whatever the text is, so that a text moves no later draw.
        """
        rows = []
        for text, source in zip(texts, sources, strict=True):
            row = self.words[torch.randint(len(self.words), (k,), generator=source).to(self.words.device)].clone()
            own = self.ids(text)[:k] if text else torch.empty(0, dtype=torch.long)
            row[: len(own)] = own.to(row.device)
            rows.append(row)
        return torch.stack(rows)


def typeable(tokenizer: object, size: int) -> Tensor:
    """Ids of whole words that tokenize to themselves: what stands in a found prompt can be typed by anyone.

    Fragments of words are left out: typed one after the other they would merge into other tokens.

    Raises:
        InputError: not one token is such a word.
    """
    encode, decode = tokenizer, tokenizer.batch_decode  # type: ignore[attr-defined]
    candidates = [i for i in range(size) if i not in set(tokenizer.all_special_ids)]  # type: ignore[attr-defined]
    texts = [text.strip() for text in decode([[i] for i in candidates])]
    whole = [(i, text) for i, text in zip(candidates, texts, strict=True) if text and text.isprintable()]
    back = encode([f"{text} {text}" for _, text in whole], add_special_tokens=False).input_ids  # type: ignore[operator]
    found = [i for (i, _), ids in zip(whole, back, strict=True) if list(ids) == [i, i]]
    if not found:
        raise InputError("No token of this tokenizer is a word of its own; attacks on text need at least one.")
    return torch.tensor(found, dtype=torch.long)
