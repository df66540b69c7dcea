"""Errors whose message is one sentence: what is wrong, where, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffkit.exit_codes import ExitCode

__all__ = ["DiffkitError", "InputError", "Interrupted", "ScoringError", "unknown_name"]


class DiffkitError(Exception):
    """Base class of the errors that diffkit raises itself; the command line prints the message and exits with its code.

    Example:
        >>> issubclass(InputError, DiffkitError), int(InputError.exit_code), int(ScoringError.exit_code)
        (True, 2, 3)
    """

    exit_code: int = ExitCode.INPUT


class InputError(DiffkitError, ValueError):
    """Wrong user input, found before anything is computed: nothing has run and nothing was written.

    Example:
        >>> from diffkit import read_prompts
        >>> try:
        ...     read_prompts("lab:nonsense")
        ... except InputError as error:
        ...     print(error)
        The lab has no prompts 'lab:nonsense'; use lab:train, lab:held-out, lab:trio-train, lab:trio, lab:planted, ...
    """


class ScoringError(DiffkitError):
    """An item that could not be scored. Its message is written to the record, beside a null score.

    Example:
        >>> import torch
        >>> from diffusers import DDIMScheduler
        >>> from diffkit.parameterization import predicted_x0
        >>> latents, scheduler = torch.zeros(1, 4, 8, 8), DDIMScheduler(prediction_type="score")
        >>> try:
        ...     predicted_x0(scheduler, latents, latents, 500)
        ... except ScoringError as error:
        ...     print(error)
        prediction type 'score' is unknown; expected epsilon, v_prediction or sample
    """

    exit_code = ExitCode.ITEMS


class Interrupted(KeyboardInterrupt):
    """Ctrl-C inside a run. `folder` is the run's folder, where the same command goes on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; the run in {folder} can be resumed")
        self.folder = folder


def unknown_name(kind: str, name: str, names: Sequence[str]) -> InputError:
    """The error for a name nobody registered: says which names exist, the likeliest first.

    Args:
        kind: what is looked up, e.g. "reward".
        name: what the user wrote.
        names: those that would have worked; may be empty.
    """
    import difflib

    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    listing = ", ".join(sorted(names)) if names else "none"
    return InputError(f"Unknown {kind} {name!r}.{hint} Known: {listing}.")
