"""Prompts that the caller has encoded: ``prompt_embeds`` and what a family takes beside it, checked and made rows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Family, Pipeline
from diffkit.prompt_embeds import MASK

__all__ = ["GivenEmbeds", "embeds_keywords", "refuse_missing_encoders"]

GivenEmbeds = Mapping[str, object]  # the pipeline's keyword -> what the caller gave for it

TEXTS = ("prompt", "prompt_2", "prompt_3", "prompt_4")


def embeds_keywords(family: Family) -> frozenset[str]:
    """The keywords of encoded prompts and negative prompts; none for a family whose encodings are not taken."""
    if family.layout == "layered":
        return frozenset()
    names = [name for name in family.encoded if name is not None]
    return frozenset([*names, *("negative_" + name for name in names)])


def has_embeds(embeds: GivenEmbeds, prefix: str = "") -> bool:
    """Whether there are encoded prompts among the keywords, or with the prefix ``negative_`` negative ones."""
    return any(name.startswith("negative_") == bool(prefix) for name in embeds)


def given_count(family: Family, embeds: GivenEmbeds, prefix: str = "") -> int:
    """How many texts are encoded there.

    Raises:
        InputError: one of the keywords is missing, is no tensor, or has another number of rows.
    """
    return len(_values(family, embeds, prefix)["prompt_embeds"])


def given_rows(
    pipe: Pipeline, family: Family, embeds: GivenEmbeds, options: Mapping[str, object], prefix: str = ""
) -> list[dict[str, object]]:
    """The keyword arguments by which ``encode_prompt`` is handed each text that is encoded already.

    It then encodes nothing, and gives back what the pipeline's loop makes of it, in the pipeline's own precision.

    Args:
        options: of every call.

    Raises:
        InputError: see :func:`given_count`.
    """
    values, device = _values(family, embeds, prefix), pipe._execution_device
    accepted = inspect.signature(pipe.encode_prompt).parameters
    shared = {name: value for name, value in options.items() if name in accepted}
    shared |= {name: None for name in TEXTS if name in accepted}

    def row(value: Tensor | list[Tensor], index: int) -> object:
        if isinstance(value, list):
            return [value[index].to(device)]
        return value[index : index + 1].to(device)

    count = len(values["prompt_embeds"])
    return [{**shared, **{name: row(value, index) for name, value in values.items()}} for index in range(count)]


def _values(family: Family, embeds: GivenEmbeds, prefix: str) -> dict[str, Tensor | list[Tensor]]:
    """What is given under the family's keywords, by the keyword of the positive prompt."""
    needed = ["prompt_embeds", *(name for name in family.companions if name != MASK)]
    optional = [name for name in family.companions if name == MASK]
    if missing := [prefix + name for name in needed if prefix + name not in embeds]:
        given = ", ".join(sorted(name for name in embeds if name.startswith("negative_") == bool(prefix)))
        raise InputError(f"{given} alone are no encoded prompts of a {family.pipeline}: give {', '.join(missing)} too.")
    values: dict[str, Tensor | list[Tensor]] = {}
    for name in [*needed, *(name for name in optional if prefix + name in embeds)]:
        value, ndim = embeds[prefix + name], 3 if name == "prompt_embeds" else 2
        if family.layout == "listed":
            ok = isinstance(value, list) and bool(value) and all(torch.is_tensor(text) for text in value)
            wanted = "a list with one tensor (length, width) for each prompt"
        else:
            ok = isinstance(value, Tensor) and value.ndim == ndim and len(value) > 0
            wanted = f"a tensor with one row for each prompt, of {ndim} dimensions"
        if not ok:
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise InputError(f"{prefix}{name} must be {wanted}, got a {type(value).__name__}{shape}.")
        values[name] = value  # type: ignore[assignment]
    counts = {prefix + name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"Encoded prompts need one row for each prompt in each keyword; got "
            f"{', '.join(f'{count} in {name}' for name, count in counts.items())}."
        )
    return values


def refuse_missing_encoders(pipe: Pipeline, family: Family) -> None:
    """Refuse to encode text where the pipeline has freed the encoder.

    Raises:
        InputError: a text encoder is None that the family cannot do without.
    """
    encoders = {name: part for name, part in pipe.components.items() if name.startswith("text_encoder")}
    missing = sorted(name for name, part in encoders.items() if part is None and name not in family.spare_encoders)
    if missing or (encoders and all(part is None for part in encoders.values())):
        keywords = ", ".join(name for name in family.encoded if name is not None)
        raise InputError(
            f"This {type(pipe).__name__} has no {', '.join(missing or encoders)} to encode text with; give {keywords} "
            f"instead of the prompt, and negative_prompt_embeds where there is guidance, or put the encoder back."
        )
