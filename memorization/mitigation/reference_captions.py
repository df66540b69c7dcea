"""Ordinary captions: what a method compares a suspect's caption with."""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import InputError
from diffkit.lab.assets import MODELS as LAB_MODELS

__all__ = ["ordinary_captions"]


def ordinary_captions(source: str | None, *, model: str, n: int) -> tuple[str, ...]:
    """The first ``n`` captions that the model has not memorized.

    Args:
        source: a text file, one caption a line; None is allowed for the lab, whose training scenes serve.
        model: what the user called the model.
        n: how many at most.

    Raises:
        InputError: no source for another model than the lab, no such file, or no captions in it.
    """
    if source is None:
        if model.partition("@")[0] not in LAB_MODELS:
            raise InputError("This method compares with ordinary captions: name a text file, --set captions=FILE.")
        from diffkit.lab.world import training_scenes

        return tuple(scene.caption for scene in training_scenes(n, seed=2025))
    path = Path(source)
    if not path.is_file():
        raise InputError(f"There is no file {source} with ordinary captions.")
    lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise InputError(f"{source} holds no captions.")
    return lines[:n]
