"""Where an attack begins: the image's own caption, an unrelated caption, or noise.

An attack that begins at the image's own caption may merely repair it; one that begins at an unrelated caption or at
noise shows that the image is reachable from anywhere. Suspects and controls begin the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.text_embeddings import Embedded, as_row, encoded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Start = Literal["prompt", "other", "gaussian"]
STARTS: tuple[Start, ...] = get_args(Start)

#: Ordinary captions to begin at when the user names none.
OTHER_CAPTIONS = (
    "a dog running on a beach",
    "a bowl of fruit on a wooden table",
    "mountains at sunrise with fog in the valley",
    "a city street at night in the rain",
    "a red bicycle leaning against a wall",
    "two children playing football in a park",
    "an old lighthouse by the sea",
    "a plate of pasta with basil",
)


def read_starts(names: Sequence[str]) -> tuple[Start, ...]:
    """Check the names of starting points.

    Raises:
        InputError: none, one twice, or an unknown one.
    """
    if not names or len(set(names)) != len(names) or not set(names) <= set(STARTS):
        raise InputError(f"Expected one or more of {', '.join(STARTS)} as starts, each once, got {', '.join(names)!r}.")
    return tuple(start for start in STARTS if start in names)


class StartingPoints:
    """Embeddings to begin at, for one pipeline.

    Args:
        pipe: a pipeline of a known family.
        other_captions: unrelated captions; each target gets one of them, chosen by its own seed.
    """

    def __init__(self, pipe: DiffusionPipeline, other_captions: Sequence[str] = OTHER_CAPTIONS) -> None:
        self._captions = tuple(other_captions)
        self._others = encoded(pipe, other_captions).to("cpu", torch.float32)
        sequences = self._others.prompt_embeds
        self._mean, self._deviation = sequences.mean(), sequences.std()

    def start(self, name: Start, *, own: Embedded, seed: int) -> Embeds:
        """One starting point, one row, float32 on the CPU.

        Args:
            name: "prompt" returns ``own``; "other" the embedding of an unrelated caption; "gaussian" independent
                normal numbers with the mean and deviation of real embeddings.
            own: embedding of the image's own caption, one row or (L, D); its companions are kept for the gaussian one,
                so that only the sequence is noise.
            seed: of the target; decides which caption, and the noise.
        """
        if name == "other":
            return self._others.rows([self._other(seed)])
        row = as_row(own).to("cpu", torch.float32)
        if name == "prompt":
            return row
        generator = torch.Generator().manual_seed(seed)
        return row.replace(self._mean + self._deviation * torch.randn(row.prompt_embeds.shape, generator=generator))

    def text(self, name: Start, *, own: str, seed: int) -> str | None:
        """The caption that :meth:`start` encodes, where attacks on text begin; None (random words) for "gaussian"."""
        if name == "gaussian":
            return None
        return own if name == "prompt" else self._captions[self._other(seed)]

    def _other(self, seed: int) -> int:
        """Which unrelated caption a target gets."""
        return int(torch.randint(len(self._captions), (), generator=torch.Generator().manual_seed(seed)))
