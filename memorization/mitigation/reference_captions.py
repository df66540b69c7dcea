"""Ordinary captions, with which a method compares a suspect's caption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.errors import InputError
from diffkit.prompts import read_prompts
from memorization.presets import Preset

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ordinary_captions", "require_finite_predictions"]


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


def require_finite_predictions(scores: Tensor) -> Tensor:
    """Scores of ordinary captions, from which a threshold is calibrated.

    Raises:
        InputError: one is NaN or infinite.
    """
    if not scores.isfinite().all():
        raise InputError("The denoiser's predictions of ordinary captions are not finite; load the model in float32.")
    return scores
