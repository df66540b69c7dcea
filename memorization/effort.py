"""How much work an audit is, counted in rows through the denoiser, so that the time left is known early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.console import Bar
from diffkit.families import pipe_denoiser
from memorization.detection import listens
from memorization.generation import is_guided
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.auditing.measure import Measurer

BACKWARD = 3  # a row with its gradient costs about as much as three without


def effort(items: Sequence[AuditItem], measurer: Measurer) -> int:
    """Rows through the denoiser for one group of items; a row with a gradient counts as three.

    Exact for the attacks and detectors that only ask the denoiser as often as their cost says.
    """
    settings, ladder, at_once = measurer.settings, measurer.ladder, measurer.images.size
    guided = 2 if is_guided(measurer.pipe, measurer.sampling) else 1
    each = settings.num_inference_steps * guided
    targets = sum(bool(item.suspect.images) for item in items) * len(settings.starts)
    captions = _filled(len(items) * settings.generations, at_once) * each
    triggers = _filled(targets * len(settings.budgets) * settings.attack_generations, at_once) * each
    slots = settings.items_at_once * len(settings.starts)
    attacked = 0
    for attack in (attack for variants in ladder.rungs.values() for attack in variants.values()):
        attacked += triggers + _filled(targets, slots) * attack.cost()[-1] * BACKWARD
        attacked += -(-targets // slots) * (ladder.checkpoints is not None)  # the question that names a search
    silent = [one for one in measurer.detectors.values() if not listens(one)]
    detected = sum(one.cost(measurer.sampling) for one in silent) * len(items) * settings.generations
    return captions + attacked + round(detected)


def _filled(rows: int, batch: int) -> int:
    """Rows with the last batch filled up."""
    return -(-rows // batch) * batch


@contextmanager
def counted(pipe: DiffusionPipeline, bar: Bar) -> Iterator[None]:
    """Let the bar follow the pipeline's denoiser inside the ``with`` block."""

    def count(_module: torch.nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], _output: object) -> None:
        latents = inputs[0] if inputs else next(iter(named.values()))  # a tensor, or a list of one a row
        bar.advance(len(latents) * (BACKWARD if torch.is_grad_enabled() else 1))

    handle = pipe_denoiser(pipe).register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
