"""Copy guards: which images of a search may not win, because they copy a picture that is forbidden.

The protocol that searches use, and the registry of those who implement it. Other packages add guards by the
entry-point group ``diffkit.copy_guards``: a function that takes a place (a folder of pictures), the
pipeline as ``pipe``, and options of its own.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias, runtime_checkable

from diffkit.errors import InputError
from diffkit.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.families import Pipeline

__all__ = ["COPY_GUARDS", "CopyCheck", "CopyGuard", "CopyGuardLike", "guarded", "is_guarded", "load_copy_guard"]

DEFAULT = "similarity"
PREFIX = "copy guard: "


class CopyCheck(NamedTuple):
    """What a guard says of one image: its highest similarity to a forbidden picture, and why it may not win.

    The similarity is NaN where it is not known; ``reason`` is None for an image that may win.
    """

    similarity: float
    reason: str | None


@runtime_checkable
class CopyGuard(Protocol):
    """Judges images, finished ones and estimates in mid-denoising alike.

    Attributes:
        name: how records call it.
        flops_per_image: floating-point operations of one check, or None when unknown.
    """

    name: str
    flops_per_image: float | None

    def check(self, images: Tensor) -> list[CopyCheck]:
        """One verdict for each of (B, 3, H, W) float images in [0, 1]; what cannot be judged may not win."""
        ...

    def card(self) -> Mapping[str, object]:
        """What a record says of it, ready for JSON: detector, threshold and its source, checksums of the pictures."""
        ...


CopyGuardLike: TypeAlias = str | Path | CopyGuard

COPY_GUARDS: Registry[Callable[..., CopyGuard]] = Registry("copy guard", "diffkit.copy_guards")


def load_copy_guard(guard: CopyGuardLike, pipe: Pipeline) -> CopyGuard:
    """A guard by its text, or as it is.

    Args:
        guard: a folder of forbidden pictures, with options behind it: ``forbidden``, ``forbidden:detector=ms-ssim``,
            ``forbidden:detector=sscd:threshold=0.7``; or a registered guard, a colon and what it takes.
        pipe: the pipeline whose images are judged.

    Raises:
        InputError: an unknown guard or option, or no pictures there.

    Example:
        >>> import torch
        >>> from diffkit import load_pipeline
        >>> from diffkit.images import load_image
        >>> from diffkit.lab.assets import photographs_path
        >>> folder = photographs_path("planted")
        >>> guard = load_copy_guard(folder, load_pipeline("lab"))
        >>> cat, gray = load_image(folder / "cat.png", (64, 64)), torch.full((3, 64, 64), 0.5)
        >>> for check in guard.check(torch.stack([cat, gray])):
        ...     print(check.reason)
        like cat.png: similarity 0.989 by tiled, threshold 0.750
        None
    """
    if not isinstance(guard, str | Path):
        return guard
    name, colon, rest = str(guard).partition(":")
    if isinstance(guard, Path) or not colon or name not in COPY_GUARDS:
        name, rest = DEFAULT, str(guard)
    factory = COPY_GUARDS.get(name)
    parts = [str(guard)] if isinstance(guard, Path) else rest.split(":")
    is_option = re.compile(r"[a-z_]+=.").match
    options = dict(part.split("=", 1) for part in parts[1:] if is_option(part))
    location = ":".join(part for at, part in enumerate(parts) if not at or not is_option(part))
    possible = [key for key in inspect.signature(factory).parameters if key not in ("location", "pipe")]
    if unknown := [key for key in options if key not in possible]:
        raise InputError(
            f"The copy guard {name!r} does not understand option {unknown[0]!r} in {str(guard)!r}; it takes "
            f"{', '.join(f'{key}=' for key in possible) or 'none'}."
        )
    return factory(location, pipe=pipe, **options)


def guarded(reason: str) -> str:
    """A guard's reason as searches write it into their trace.

    Example:
        >>> guarded("like cat.png"), is_guarded("copy guard: like cat.png"), is_guarded("the score is not finite")
        ('copy guard: like cat.png', True, False)
    """
    return PREFIX + reason


def is_guarded(reason: str | None) -> bool:
    """Whether a candidate was dropped by a copy guard."""
    return reason is not None and reason.startswith(PREFIX)
