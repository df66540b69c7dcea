"""What a pipeline's loop hands to its denoiser and its ControlNet in its first step, without running either.

Families that begin from a picture give their denoiser more than latents and text: masks, latents of the picture, tokens
of a reference. How much a call costs is counted on what the stock pipeline itself hands over.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from diffkit.conditioning import Conditioning
from diffkit.families import Pipeline
from diffkit.prepared_again import DenoiserCall, idle
from diffkit.scheduler_window import Window, scheduler_copy
from diffkit.segments import Candidate, Denoising, quiet, run_loop
from diffkit.solvers import UNCUT

__all__ = ["first_step_calls"]


class _FirstStepMade(Exception):
    """The loop has come to its first step of the scheduler."""


@torch.no_grad()
def first_step_calls(
    pipe: Pipeline,
    conditioning: Conditioning,
    denoising: Denoising,
    *,
    call: Callable[..., tuple[Tensor, object]] | None = None,
) -> list[DenoiserCall]:
    """The calls of one step for one candidate of the first prompt.

    Args:
        conditioning, denoising, call: as :func:`diffkit.segments.run_segment` takes them.
    """
    candidate = Candidate(0, 0, torch.Generator().manual_seed(0))
    with scheduler_copy(pipe) as scheduler, quiet(pipe), idle(pipe) as (calls, _):
        scheduler.__class__ = _ending(type(scheduler))
        view = Window(scheduler, UNCUT, (0, None), {}, lambda x0: None)
        with suppress(_FirstStepMade):
            run_loop(pipe, [candidate], conditioning, denoising, call or pipe, view)
    return calls


def _ending(base: Any) -> type:
    """The scheduler's class, whose first step ends the loop."""

    @functools.wraps(base.step)  # pipelines look at the signature to see what they may hand over
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise _FirstStepMade

    return type(base.__name__, (base,), {"step": step, "__module__": base.__module__})
