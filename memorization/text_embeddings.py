"""Encoded texts as attacks, detectors and generation take them: rows of Embeds, or the sequences alone.

A Stable Diffusion 1 or 2 has nothing beside the sequence, so that a tensor says it all there; every other family has
companions (pooled embeddings, masks), and gets the :class:`diffkit.prompt_embeds.Embeds` that ``encode_prompts``
returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["Embedded", "as_embeds", "as_row", "empty_text", "encoded", "pooled_names", "tensors", "unaccompanied"]

Embedded: TypeAlias = Embeds | Tensor


def as_embeds(rows: Embedded) -> Embeds:
    """Rows (n, L, D) as they are, or with no companions."""
    return rows if isinstance(rows, Embeds) else Embeds(rows)


def as_row(row: Embedded) -> Embeds:
    """One encoded text, (L, D) or Embeds of one row, as Embeds of one row."""
    return row if isinstance(row, Embeds) else Embeds(row[None])


def encoded(pipe: Pipeline, captions: Sequence[str]) -> Embeds:
    """The captions as the pipeline encodes prompts, one a row."""
    return encode_prompts(pipe, list(captions), guidance=False).positive


def empty_text(pipe: Pipeline) -> Embeds:
    """The empty caption, one row: what a generation without negative prompts steers away from.

    As the pipeline itself has it: an SDXL with ``force_zeros_for_empty_prompt`` has zeros.
    """
    negative = encode_prompts(pipe, [""]).negative
    assert negative is not None  # asked for by the default of `guidance`
    return negative


def pooled_names(embeds: Embeds) -> list[str]:
    """The companions that hold a whole text in one vector."""
    return [name for name in embeds.companions if name.startswith("pooled")]


def tensors(rows: Embeds) -> dict[str, Tensor]:
    """``prompt_embeds`` and every companion by name; ``rows.replace(**tensors)`` puts others in their place."""
    return {"prompt_embeds": rows.prompt_embeds, **rows.companions}


def unaccompanied(pipe: Pipeline, sequences: Tensor) -> Embeds:
    """(n, L, D) sequences beside the companions of the empty caption, every token visible: only sequences differ.

    Raises:
        InputError: texts of this family differ in length, so that sequences alone cannot be compared.
    """
    empty = encoded(pipe, [""])
    if empty.varies:
        raise InputError(f"Prompts of {type(pipe).__name__} differ in length; sequences of one length are needed here.")
    masks = {name: torch.ones_like(value) for name, value in empty.companions.items() if name.endswith("mask")}
    return empty.replace(**masks).expand(len(sequences)).replace(sequences)
