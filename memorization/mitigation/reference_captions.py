"""Ordinary captions, with which a method compares a suspect's caption."""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import InputError
from memorization.presets import Preset

__all__ = ["ordinary_captions"]


def ordinary_captions(source: str | None, *, preset: Preset, n: int) -> tuple[str, ...]:
    """The first ``n`` captions that the model has not memorized.

    Args:
        source: a text file, one caption a line; None = the preset's captions.
        preset: of the run.
        n: how many at most.

    Raises:
        InputError: no source and no captions in the preset, no such file, or no captions in it.
    """
    if source is None:
        if preset.ordinary_captions is None:
            raise InputError("This method compares with ordinary captions: name a text file, --set captions=FILE.")
        return preset.ordinary_captions(n)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"There is no file {source} with ordinary captions.")
    lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise InputError(f"{source} holds no captions.")
    return lines[:n]
