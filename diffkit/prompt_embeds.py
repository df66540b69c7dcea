"""An encoded prompt: the sequence that the denoiser attends to, and all that the text encoders return beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from diffkit.errors import InputError

__all__ = ["MASK", "Embeds", "Layout"]

Layout = Literal["fixed", "masked", "listed", "alone", "layered"]

MASK = "prompt_embeds_mask"  # (n, L), the companion that tells real tokens from fill


@dataclass(frozen=True)
class Embeds:
    """Encoded texts, one a row.

    Attributes:
        prompt_embeds: (n, L, D), the sequence that cross or joint attention reads, and that attacks change.
        companions: what else the pipeline takes for them, each (n, ...), under the pipeline's own keyword for the
            positive prompt: ``pooled_prompt_embeds`` (n, P), ``prompt_attention_mask`` (n, L) and so on.
        layout: "fixed" where every text has L tokens; "masked" where texts differ in length and the companion ``MASK``
            says which tokens are real, so that rows alone are as short as they were encoded; "listed" is the same for
            a pipeline that takes a list of (L_i, D), "alone" for one that takes neither a mask nor a list, so that only
            texts of one length go together; "layered" is "fixed" for HiDream, whose call has the hidden layers of a
            text encoder before the rows.
    """

    prompt_embeds: Tensor
    companions: Mapping[str, Tensor] = field(default_factory=dict)
    layout: Layout = "fixed"

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def rows(self, indices: Sequence[int]) -> Embeds:
        """The rows at ``indices``, in that order; an index may come back several times."""
        picked = torch.as_tensor(list(indices), dtype=torch.long)
        chosen = self._each(lambda value: value[picked.to(value.device)])
        if not self.varies:
            return chosen
        longest = int(chosen.companions[MASK].sum(1).max())
        return replace(
            chosen,
            prompt_embeds=chosen.prompt_embeds[:, :longest],
            companions={**chosen.companions, MASK: chosen.companions[MASK][:, :longest]},
        )

    @property
    def varies(self) -> bool:
        """Whether texts differ in length, which ``MASK`` tells."""
        return self.layout not in ("fixed", "layered")

    def width(self, row: int) -> int:
        """Tokens of a row where only rows of as many go together; else 0."""
        return int(self.companions[MASK][row].sum()) if self.layout == "alone" else 0

    def texts(self) -> list[Tensor]:
        """The sequence of each row without fill, each (L_i, D)."""
        if not self.varies:
            return list(self.prompt_embeds)
        lengths = self.companions[MASK].sum(1).tolist()
        return [row[: int(length)] for row, length in zip(self.prompt_embeds, lengths, strict=True)]

    def repeat(self, n: int) -> Embeds:
        """Every row ``n`` times, copies next to each other."""
        return self._each(lambda value: value.repeat_interleave(n, 0))

    def expand(self, n: int) -> Embeds:
        """``n`` rows, all the one row there is; no memory is copied.

        Raises:
            InputError: there is not exactly one row.
        """
        if len(self) != 1:
            raise InputError(f"Expected one encoded text to expand, got {len(self)}.")
        return self._each(lambda value: value.expand(n, *value.shape[1:]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Embeds:
        """Everything on ``device``; what is a floating-point number in ``dtype``, masks as they are."""
        return self._each(lambda value: value.to(device, dtype if value.is_floating_point() else None))

    def cpu(self) -> Embeds:
        """Everything in host memory."""
        return self.to("cpu")

    def detach(self) -> Embeds:
        """The same numbers without their history of gradients."""
        return self._each(Tensor.detach)

    def replace(self, prompt_embeds: Tensor | None = None, **companions: Tensor) -> Embeds:
        """The same texts with another sequence, or other companions, in place of their own.

        Raises:
            InputError: there is no such companion.
        """
        if unknown := set(companions) - set(self.companions):
            raise InputError(f"These encoded prompts have no {', '.join(sorted(unknown))}.")
        sequence = self.prompt_embeds if prompt_embeds is None else prompt_embeds
        return replace(self, prompt_embeds=sequence, companions={**self.companions, **companions})

    def kwargs(self, prefix: str = "") -> dict[str, Tensor | list[Tensor]]:
        """The pipeline's keyword arguments; ``prefix`` is ``negative_`` for what it steers away from."""
        if self.layout == "listed":
            return {prefix + "prompt_embeds": self.texts()}
        named = {"prompt_embeds": self.prompt_embeds, **self.companions}
        if self.layout == "alone":
            del named[MASK]
        if self.layout == "layered":
            named["prompt_embeds_t5"] = named.pop("prompt_embeds")
            named["prompt_embeds_llama3"] = named["prompt_embeds_llama3"].transpose(0, 1)
        return {prefix + name: value for name, value in named.items()}

    @staticmethod
    def cat(parts: Sequence[Embeds]) -> Embeds:
        """All rows of all parts; shorter sequences are filled up with zeros, and so are their masks.

        Raises:
            InputError: no parts, or parts of different families.
        """
        if not parts or len({frozenset(part.companions) for part in parts}) > 1:
            raise InputError("Expected encoded prompts of one model, got none or of several.")
        first = parts[0]
        companions = {name: _stacked([part.companions[name] for part in parts]) for name in first.companions}
        return replace(first, prompt_embeds=_stacked([part.prompt_embeds for part in parts]), companions=companions)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Embeds:
        companions = {name: change(value) for name, value in self.companions.items()}
        return replace(self, prompt_embeds=change(self.prompt_embeds), companions=companions)


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Concatenation along the rows, after filling up dimension 1 with zeros to the longest."""
    if values[0].ndim < 2 or len({value.shape[1] for value in values}) == 1:
        return torch.cat(list(values))
    longest = max(value.shape[1] for value in values)
    return torch.cat([pad(value, (*[0, 0] * (value.ndim - 2), 0, longest - value.shape[1])) for value in values])
