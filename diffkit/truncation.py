"""Prompts that are longer than a text encoder reads: which, and by how much.

The stock pipelines cut such prompts and log a warning at each call. What lies beyond the cut changes no image, so an
audit of a long caption is an audit of its beginning; that belongs into the result, once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

from diffkit.console import say
from diffkit.families import Pipeline, any_family_of
from diffkit.families.base import stock_default

__all__ = ["Truncated", "say_truncated", "tokens_beyond", "truncated_prompts"]

#: Key of a prompt -> name of a tokenizer of the pipeline -> how many tokens of the prompt its encoder does not read.
Truncated = dict[str, dict[str, int]]

SHOWN = 10
BLOCK = 1000  # prompts tokenized at once
LIBRARY_WARNINGS = ("input was truncated because", "Token indices sequence length is longer")


def tokens_read(pipe: Pipeline) -> dict[str, int]:
    """How many tokens each of a pipeline's text encoders reads, its special ones included, by the tokenizer's name.

    77 for CLIP; what the family's call takes by default (``max_sequence_length``) for T5 and language models.
    """
    from transformers import CLIPTokenizer, CLIPTokenizerFast

    default = stock_default(any_family_of(pipe), "max_sequence_length")
    tokenizers = {
        name: part for name, part in pipe.components.items() if name.startswith("tokenizer") and part is not None
    }
    return {
        name: int(tokenizer.model_max_length)
        if default is None or isinstance(tokenizer, (CLIPTokenizer, CLIPTokenizerFast))
        else int(default)
        for name, tokenizer in tokenizers.items()
    }


def tokens_beyond(pipe: Pipeline, prompt: str) -> dict[str, int]:
    """How many tokens of a prompt each text encoder does not read; encoders that read it whole are not named.

    A template that a family puts around the prompt (Lumina 2, Z-Image) is not counted.

    Example:
        >>> from diffkit import load_pipeline
        >>> pipe = load_pipeline("lab")
        >>> tokens_beyond(pipe, "a red circle on gray"), list(tokens_beyond(pipe, "a red circle on gray " * 30))
        ({}, ['tokenizer'])
    """
    return _beyond(pipe, [prompt])[0]


def truncated_prompts(pipe: Pipeline, prompts: Mapping[str, str]) -> Truncated:
    """The prompts that a text encoder does not read to their end, by their keys."""
    keys, texts = list(prompts), list(prompts.values())
    blocks = (_beyond(pipe, texts[first : first + BLOCK]) for first in range(0, len(texts), BLOCK))
    beyond = zip(keys, chain.from_iterable(blocks), strict=True)
    return {key: tokens for key, tokens in beyond if tokens}


def _beyond(pipe: Pipeline, texts: Sequence[str]) -> list[dict[str, int]]:
    """:func:`tokens_beyond` of several prompts; tokenizers are faster at many."""
    beyond: list[dict[str, int]] = [{} for _ in texts]
    for name, read in tokens_read(pipe).items():
        tokens = getattr(pipe, name)(list(texts), truncation=False, verbose=False).input_ids
        for counts, row in zip(beyond, tokens, strict=True):
            if len(row) > read:
                counts[name] = len(row) - read
    return beyond


def truncation_sentence(pipe: Pipeline, truncated: Truncated, what: str = "captions") -> str:
    """What a report says of truncated prompts; they are named by their keys."""
    read = tokens_read(pipe)
    encoders = sorted({name for tokens in truncated.values() for name in tokens})
    limits = ", ".join(f"the first {read[name]} tokens of {name}" for name in encoders)
    names = ", ".join(list(truncated)[:SHOWN])
    more = f" and {len(truncated) - SHOWN} more" if len(truncated) > SHOWN else ""
    return f"Longer than a text encoder reads: {len(truncated)} {what} ({names}{more}). Only {limits} count."


def say_truncated(pipe: Pipeline, prompts: Mapping[str, str], what: str = "captions") -> Truncated:
    """Name truncated prompts on the console, once; the libraries' own warnings at each call are silenced from here on.

    Args:
        prompts: by the key that names each.
        what: "captions" or "prompts".
    """
    for library in ("diffusers", "transformers"):
        for handler in logging.getLogger(library).handlers:
            handler.addFilter(_is_other)  # a filter that is there already is not added again
    truncated = truncated_prompts(pipe, prompts)
    if truncated:
        say(truncation_sentence(pipe, truncated, what))
    return truncated


def _is_other(record: logging.LogRecord) -> bool:
    """Whether a library's warning is about something else."""
    return not any(sign in record.getMessage() for sign in LIBRARY_WARNINGS)
