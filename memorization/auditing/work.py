"""How much a group of items is to compute, for the time left, and a count of what was computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.console import Bar
from diffkit.families import pipe_denoiser
from memorization.auditing.attack_suite import evenly
from memorization.auditing.effort import Effort
from memorization.auditing.measure import Measurer
from memorization.detection.base import is_recording
from memorization.generation import is_guided
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Counter", "counted", "planned_rows"]

BACKWARD = 3  # a row with its gradient costs about as much as three without


def planned_rows(items: Sequence[AuditItem], measurer: Measurer, effort: Effort) -> int:
    """Rows through the denoiser for one group of items; a row with a gradient counts as three.

    Exact for the attacks and detectors that call the denoiser as often as their ``cost`` states, if no attack ends
    before its limit.
    """
    settings, ladder, at_once = measurer.settings, measurer.ladder, measurer.images.size
    guided = 2 if is_guided(measurer.pipe, measurer.sampling) else 1
    each = settings.num_inference_steps * guided
    targets = sum(bool(item.suspect.images) and item.key not in effort.left_out for item in items)
    targets *= len(settings.starts)
    captions = _filled(len(items) * settings.generations, at_once) * each
    attacked = 0
    for rung, variants in ladder.rungs.items() if targets else ():
        stages = effort.stages(rung, settings.budgets)
        for attack in variants.values():
            attacked += settings.items_at_once * len(settings.starts) * attack.cost()[stages[-1][1] - 1] * BACKWARD
            attacked += len(stages) * (ladder.checkpoints is not None)  # the call that identifies a search
            for first, end in stages:
                rows = targets * (end - first) * settings.attack_generations
                attacked += _filled(rows, evenly(rows, at_once)) * each
    separate = [detector for detector in measurer.detectors.values() if not is_recording(detector)]
    detected = sum(detector.cost(measurer.sampling) for detector in separate) * len(items) * settings.generations
    return captions + attacked + round(detected)


def _filled(rows: int, batch: int) -> int:
    """Rows with the last batch filled up."""
    return -(-rows // batch) * batch


class Counter:
    """Counts rows through the denoiser, on a bar.

    Attributes:
        rows: counted since the last :meth:`settle`.
    """

    def __init__(self, bar: Bar) -> None:
        self.bar, self.rows = bar, 0

    def count(self, _module: object, inputs: tuple[Tensor, ...], named: dict[str, Any], _output: object) -> None:
        """A forward hook of the denoiser: its first input is a tensor, or a list of one a row."""
        latents = inputs[0] if inputs else next(iter(named.values()))
        rows = len(latents) * (BACKWARD if torch.is_grad_enabled() else 1)
        self.rows += rows
        self.bar.advance(rows)

    def settle(self, planned: int) -> None:
        """Count what was planned and not needed, since attacks ended early."""
        if planned > self.rows:
            self.bar.advance(planned - self.rows)
        self.rows = 0


@contextmanager
def counted(pipe: DiffusionPipeline, bar: Bar) -> Iterator[Counter]:
    """Advance the bar with every call of the pipeline's denoiser inside the ``with`` block."""
    counter = Counter(bar)
    handle = pipe_denoiser(pipe).register_forward_hook(counter.count, with_kwargs=True)
    try:
        yield counter
    finally:
        handle.remove()
