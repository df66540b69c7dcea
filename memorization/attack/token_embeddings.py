"""The space at the input of the text encoders: sequences of word vectors, and words that survive being typed.

With several text encoders (SDXL two, SD3 three, FLUX.1 two) the vectors go into all of them: a word is one token of
each, a soft token one vector in each. Pooled embeddings then follow from the words, as for a typed prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkit.errors import InputError
from diffkit.families import Family, family_of
from diffkit.prompt_embeds import MASK, Embeds

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Vectors = list[Tensor]  # (B, k, D) for each text encoder


class TextSpace:
    """A pipeline's tokenizers and text encoders, with vectors in place of token embeddings.

    A word is an index of the vocabulary: with one encoder its token id, with several its place among the words that
    are one token in each.

    Attributes:
        tables: for each encoder (V, D) float32 token embeddings, by the vocabulary.
        slots: tokens of a prompt that every encoder holds: 75 for Stable Diffusion 1.
        words: the vocabulary's whole words that are typeable, rising; see :func:`typeable`.

    Args:
        pipe: a pipeline of a known family.

    Raises:
        InputError: no text encoder with a tokenizer of its own, or no word that all of them have.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self._pipe = pipe
        self._tokenizers, self._encoders = encoders(pipe)
        tables = [encoder.get_input_embeddings().weight.detach() for encoder in self._encoders]
        words = [typeable(tokenizer, len(table)) for tokenizer, table in zip(self._tokenizers, tables, strict=True)]
        device = tables[0].device
        self.slots = min(int(min(tokenizer.model_max_length, 1000)) for tokenizer in self._tokenizers) - 2
        if len(tables) == 1:
            self._ids: Tensor | None = None
            self.words = words[0].to(device)
        else:
            self._ids, self._texts = shared(self._tokenizers, words)
            self.words = torch.arange(len(self._ids), device=device)
        self.tables = [self._rows(i, table).float() for i, table in enumerate(tables)]
        first = int(self.words[0])
        self._filler, self._filler_ids = self.text(self.words[:1]), [self._token(i, first) for i in range(len(tables))]

    def encode_ids(self, ids: Tensor) -> Embeds:
        """(B, k) words between the special tokens to B rows, as the pipeline encodes a prompt."""
        return self.encode_vectors([table[ids] for table in self.tables])

    def encode_vectors(self, vectors: Vectors) -> Embeds:
        """Vectors in place of k token embeddings, in every encoder, to B rows, float32; differentiable.

        The pipeline's own ``encode_prompt`` is given k filler words a row, and hooks on the encoders' lookup tables
        put the vectors in their places, so that positions, masks, templates and final norms stay the encoders' own.

        Raises:
            InputError: more vectors than the encoders hold.
        """
        rows, k = vectors[0].shape[:2]
        if k > self.slots:
            raise InputError(f"The text encoder holds {self.slots} tokens of a prompt, got {k}.")
        accepted = inspect.signature(self._pipe.encode_prompt).parameters
        options = {"device": self._pipe.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        options |= dict.fromkeys(("prompt_2", "prompt_3"))  # the same text for every encoder
        options = {name: value for name, value in options.items() if name in accepted}
        with self._in_place(vectors):
            outputs = self._pipe.encode_prompt(prompt=[" ".join([self._filler] * k)] * rows, **options)
        return _rows_of(family_of(self._pipe), outputs).to(dtype=torch.float32)

    @contextmanager
    def _in_place(self, vectors: Vectors) -> Iterator[None]:
        handles = []
        for encoder, filler, own in zip(self._encoders, self._filler_ids, vectors, strict=True):
            table = encoder.get_input_embeddings().weight
            for module in encoder.modules():
                if isinstance(module, nn.Embedding) and module.weight.data_ptr() == table.data_ptr():
                    handles.append(module.register_forward_hook(_put(filler, own)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _rows(self, encoder: int, table: Tensor) -> Tensor:
        return table if self._ids is None else table[self._ids[:, encoder].to(table.device)]

    def _token(self, encoder: int, word: int) -> int:
        return word if self._ids is None else int(self._ids[word, encoder])

    def ids(self, text: str) -> Tensor:
        """(n,) words of a text, at most ``slots``; with several encoders only words that are in all vocabularies."""
        if self._ids is None:
            options = {"add_special_tokens": False, "truncation": True, "max_length": self.slots}
            return torch.tensor(self._tokenizers[0](text, **options).input_ids, dtype=torch.long)
        index = {word: position for position, word in enumerate(self._texts)}
        ids = [index[word] for word in text.split() if word in index]
        return torch.tensor(ids[: self.slots], dtype=torch.long)

    def text(self, ids: Tensor) -> str:
        """The text to type for these (k,) words, where all of them are typeable."""
        if self._ids is None:
            return str(self._tokenizers[0].decode(ids.tolist())).strip()
        return " ".join(self._texts[index] for index in ids.tolist())

    def begin(self, texts: Sequence[str | None], sources: Sequence[torch.Generator], k: int) -> Tensor:
        """(B, k) words to begin at: the text's first k, filled up with words drawn by each image's generator.

        All k words are drawn whatever the text is, so that later draws do not depend on it.
        """
        rows = []
        for text, source in zip(texts, sources, strict=True):
            row = self.words[torch.randint(len(self.words), (k,), generator=source).to(self.words.device)].clone()
            own = self.ids(text)[:k] if text else torch.empty(0, dtype=torch.long)
            row[: len(own)] = own.to(row.device)
            rows.append(row)
        return torch.stack(rows)


def _rows_of(family: Family, outputs: Sequence[Any]) -> Embeds:
    """The outputs of ``encode_prompt`` for texts of equal length, as rows."""
    pairs = zip(family.encoded, outputs, strict=False)
    named = {name: value for name, value in pairs if name is not None and value is not None}
    if family.layout == "listed":
        named = {name: torch.stack(list(value)) for name, value in named.items()}
    sequence = named.pop("prompt_embeds")
    if family.layout not in ("fixed", "layered"):
        named.setdefault(MASK, torch.ones(sequence.shape[:2], dtype=torch.long, device=sequence.device))
    return Embeds(sequence, named, family.layout)


def _put(filler: int, vectors: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A hook on a lookup table that puts the vectors, row by row, at the places of the filler's id."""

    def put(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        places = inputs[0] == filler
        if places.sum() != vectors.shape[0] * vectors.shape[1]:
            raise InputError("A text encoder cuts the prompt: give the attack fewer tokens.")
        filled = output.clone()
        filled[places] = vectors.flatten(0, 1).to(output)
        return filled

    return put


def encoders(pipe: DiffusionPipeline) -> tuple[list[Any], list[Any]]:
    """The pipeline's loaded tokenizers and their text encoders.

    Raises:
        InputError: there are none that attacks on text could use.
    """
    names = ["", "_2", "_3", "_4"]
    pairs = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in names]
    loaded = [(tokenizer, encoder) for tokenizer, encoder in pairs if tokenizer is not None and encoder is not None]
    if not loaded or not all(hasattr(encoder, "get_input_embeddings") for _, encoder in loaded):
        raise InputError(f"{type(pipe).__name__} has no text encoder to put words into; use dori, norm-bounded, ...")
    return [tokenizer for tokenizer, _ in loaded], [encoder for _, encoder in loaded]


def shared(tokenizers: Sequence[Any], words: Sequence[Tensor]) -> tuple[Tensor, list[str]]:
    """(W, encoders) ids of the words that are one typeable token in every tokenizer, and the words, sorted.

    Raises:
        InputError: they have no word in common.
    """
    pairs = zip(tokenizers, words, strict=True)
    vocabularies = [{tokenizer.decode([i]).strip(): i for i in ids.tolist()} for tokenizer, ids in pairs]
    common = sorted(set.intersection(*map(set, vocabularies)))
    if not common:
        raise InputError(
            "The text encoders have no word in common that is one token in each; attacks on text need one."
        )
    return torch.tensor([[vocabulary[word] for vocabulary in vocabularies] for word in common]), common


def typeable(tokenizer: object, size: int) -> Tensor:
    """Ids of whole words that tokenize to themselves, so that a prompt of them can be typed.

    Fragments of words are left out: typed one after the other they would merge into other tokens.

    Raises:
        InputError: not one token is such a word.
    """
    encode, decode = tokenizer, tokenizer.batch_decode  # type: ignore[attr-defined]
    candidates = [i for i in range(size) if i not in set(tokenizer.all_special_ids)]  # type: ignore[attr-defined]
    texts = [text.strip() for text in decode([[i] for i in candidates])]
    whole = [(i, text) for i, text in zip(candidates, texts, strict=True) if text and text.isprintable()]
    back = encode([f"{text} {text}" for _, text in whole], add_special_tokens=False).input_ids  # type: ignore[operator]
    typeable_ids = [i for (i, _), ids in zip(whole, back, strict=True) if list(ids) == [i, i]]
    if not typeable_ids:
        raise InputError("No token of this tokenizer is a word of its own; attacks on text need at least one.")
    return torch.tensor(typeable_ids, dtype=torch.long)
