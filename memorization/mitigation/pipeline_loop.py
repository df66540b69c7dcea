"""The denoising loop that a call of the denoiser belongs to: which rows are guided, and where a loop begins.

A call of the denoiser does not say whether its rows are both halves of guidance, and the pipeline's attributes do not
either: PixArt keeps no guidance scale, a search runs a pipeline of its own with a copy of the scheduler, and a
detector's query has no loop at all, though its rows may look like two halves. So the loop is read where it runs, from
the local variables ``latents`` and ``timesteps`` of the stock pipeline's ``__call__``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from hashlib import sha256
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.conditioning import predict_noise
from diffkit.errors import InputError
from diffkit.scheduler_window import Window

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["Loop", "SuspendedRows", "running_loop"]


class Loop(NamedTuple):
    """A denoising loop that is running.

    Attributes:
        pipe: whose loop it is; in a search another pipeline than the one that the guard was applied to.
        latents: (n, ...), as the loop carries them.
        timesteps: of the loop's steps. Every loop has a tensor of its own, by which it is told from others.
        generators: one for each row, or none where the rows share one or have torch's.
    """

    pipe: Pipeline
    latents: Tensor
    timesteps: Tensor
    generators: tuple[torch.Generator, ...]

    @property
    def window(self) -> Window | None:
        """What shows this loop a part of the steps only, as in a search, to be resumed by other loops."""
        view: Window | None = getattr(type(self.pipe.scheduler), "_window", None)
        return view if view is not None and view.open else None

    @property
    def resumes(self) -> bool:
        """Whether other loops have made the denoising's first steps."""
        return self.window is not None and self.window.start > 0

    def is_guided(self, rows: int) -> bool:
        """Whether a denoiser call of so many rows is [negative; positive].

        Raises:
            InputError: it has neither one row nor two rows for each image.
        """
        n = len(self.latents)
        if rows not in (n, 2 * n):
            raise InputError(
                f"Expected {n} rows of the denoiser without guidance or {2 * n} with it, got {rows}: the guards do not "
                f"know how {type(self.pipe).__name__} guides."
            )
        return rows == 2 * n


class _Part(NamedTuple):
    """A part of a denoising: what shows its steps, its generators, and for each row its caption and what is kept."""

    window: Window
    generators: tuple[torch.Generator, ...]
    captions: list[bytes]
    rows: Tensor


class SuspendedRows:
    """Rows that were made at the first step of a denoising, for the loops that resume it.

    A search resumes its candidates in other batches than those in which they began, and some from new seeds. A
    candidate is known again by its caption and the latents at which it was suspended; where the pipeline prepares again
    (image-to-image, inpainting), which changes them, by its caption and the seed of its generator.

    Args:
        most: how many rows are kept; the oldest are forgotten.
    """

    def __init__(self, most: int = 4096) -> None:
        self.most = most
        self._rows: dict[tuple[bytes, bytes], Tensor] = {}
        self._last: _Part | None = None

    def remember(self, loop: Loop, captions: Tensor, rows: Tensor) -> None:
        """Keep a row, on the host, for each caption of a loop that may be suspended.

        Args:
            captions: (n, L, D).
            rows: (n, ...).
        """
        self._file()
        if loop.window is not None:
            self._last = _Part(loop.window, loop.generators, _digests(captions), rows.cpu())

    def recall(self, loop: Loop, captions: Tensor) -> Tensor:
        """The rows of a loop that resumes, in its order and on the captions' device.

        Raises:
            InputError: the first steps were not seen here.
        """
        self._file()
        assert loop.window is not None  # it resumes
        names = _names(loop.window, loop.latents, loop.generators)
        keys = list(zip(names, _digests(captions), strict=False))
        if len(keys) < len(captions) or any(key not in self._rows for key in keys):
            raise InputError(
                "The guard does not know the candidates that this search resumes; apply it before the search begins, "
                "give each candidate its own seed, or search without cuts (schedule='')."
            )
        return torch.stack([self._rows[key] for key in keys]).to(captions)

    def _file(self) -> None:
        """File the rows of the last part, which is over, under where it stopped."""
        part, self._last = self._last, None
        if part is None or part.window.latents is None:
            return
        names = _names(part.window, part.window.latents, part.generators)
        for name, caption, row in zip(names, part.captions, part.rows, strict=False):
            self._rows.pop((name, caption), None)
            self._rows[name, caption] = row
        for key in list(self._rows)[: max(0, len(self._rows) - self.most)]:
            del self._rows[key]


def _names(window: Window, latents: Tensor, generators: Sequence[torch.Generator]) -> list[bytes]:
    """What a suspended candidate is known by, one for each row; none where it would be a seed and rows share it."""
    if window.prepared_again:
        return [str(generator.initial_seed()).encode() for generator in generators]
    return _digests(latents)


def _digests(rows: Tensor) -> list[bytes]:
    return [sha256(row.detach().float().cpu().numpy().tobytes()).digest() for row in rows]


def running_loop(*, required: bool = False) -> Loop | None:
    """The innermost stock loop from which this is called; None outside of one, as in a detector's own query.

    Args:
        required: whether a pipeline's call without such a loop is refused.

    Raises:
        InputError: a pipeline is called whose own ``__call__`` replaces the stock loop by one that cannot be read.
    """
    frame: FrameType | None = sys._getframe(1)
    unreadable: Pipeline | None = None
    while frame is not None and frame.f_code is not predict_noise.__code__:
        if frame.f_code.co_name == "__call__" and _is_pipeline(pipe := frame.f_locals.get("self")):
            latents, timesteps = (frame.f_locals.get(name) for name in ("latents", "timesteps"))
            if isinstance(latents, Tensor) and isinstance(timesteps, Tensor):
                return Loop(pipe, latents, timesteps, _generators(frame.f_locals.get("generator")))
            unreadable = unreadable or pipe
        frame = frame.f_back
    if required and unreadable is not None:
        raise InputError(
            f"The loop of {type(unreadable).__name__} cannot be read: its __call__ has no tensors named latents and "
            f"timesteps; use a stock pipeline, a subclass that calls the stock one, or undo the guard."
        )
    return None


def _is_pipeline(candidate: object) -> bool:
    from diffusers import DiffusionPipeline

    return isinstance(candidate, DiffusionPipeline)


def _generators(given: object) -> tuple[torch.Generator, ...]:
    return tuple(given) if isinstance(given, Sequence) else ()
