"""The stop of a denoising: diffusers' ``pipe._interrupt = True``, set by a callback, a hook, a thread or an interface.

A stock loop skips the steps that are left then, and the next call begins with False again. Latents whose steps were
skipped belong to no image: they are handed on only where a call is the stock pipeline's own, which returns them.
"""

from __future__ import annotations

from torch import Tensor

from diffkit.errors import DiffkitError
from diffkit.exit_codes import ExitCode
from diffkit.families import Pipeline

__all__ = ["DenoisingInterrupted", "is_interrupted"]


class DenoisingInterrupted(DiffkitError):
    """A denoising was stopped by ``pipe._interrupt = True`` before its last step.

    Attributes:
        latents: what the stopped call of the pipeline has returned, a row for each candidate of its batch; None where
            none was running.

    Example:
        >>> from diffkit.errors import DiffkitError
        >>> issubclass(DenoisingInterrupted, DiffkitError), int(DenoisingInterrupted.exit_code)
        (True, 130)
    """

    exit_code = ExitCode.INTERRUPTED

    def __init__(
        self, pipe: Pipeline, what: str = "what was being denoised has no image", latents: Tensor | None = None
    ) -> None:
        self.latents = latents
        super().__init__(f"This {type(pipe).__name__} was interrupted (pipe._interrupt = True): {what}.")


def is_interrupted(pipe: Pipeline) -> bool:
    """Whether the pipeline was told to stop, since its last call began or since a search began.

    Example:
        >>> from types import SimpleNamespace
        >>> is_interrupted(SimpleNamespace(_interrupt=True)), is_interrupted(SimpleNamespace())
        (True, False)
    """
    return bool(getattr(pipe, "_interrupt", False))
