"""Ordinary captions, with which a method compares a suspect's caption."""

from __future__ import annotations

from diffkit.errors import InputError
from diffkit.prompts import read_prompts
from memorization.presets import Preset

__all__ = ["ordinary_captions"]


def ordinary_captions(source: str | None, *, preset: Preset, n: int) -> tuple[str, ...]:
    """The first ``n`` captions that the model has not memorized.

    Args:
        source: what :func:`diffkit.prompts.read_prompts` reads, such as a text file with a caption a line; None = the
            preset's captions.
        preset: of the run.
        n: how many at most.

    Raises:
        InputError: no source and no captions in the preset, or a source that cannot be read.
    """
    if source is None:
        if preset.ordinary_captions is None:
            raise InputError("This method compares with ordinary captions: name a text file, --set captions=FILE.")
        return preset.ordinary_captions(n)
    return tuple(read_prompts(source))[:n]
