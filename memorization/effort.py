"""How much work an audit is, counted in rows through the denoiser, so that the time left is known early."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.console import Bar
from memorization.items import AuditItem
from memorization.settings import AuditSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

BACKWARD = 3  # a row with its gradient costs about as much as three without


def effort(items: Sequence[AuditItem], settings: AuditSettings) -> int:
    """Rows through the denoiser for one group of items; a row with a gradient counts as three."""
    guided = 2 if settings.guidance_scale > 1 else 1
    each = settings.num_inference_steps * guided
    targets = sum(bool(item.suspect.images) for item in items) * len(settings.starts)
    captions = _filled(len(items) * settings.generations, settings.micro_batch) * each
    triggers = _filled(targets * len(settings.budgets) * settings.attack_generations, settings.micro_batch) * each
    attacked = _filled(targets, settings.items_at_once * len(settings.starts))
    return captions + triggers + attacked * settings.draws * settings.budgets[-1] * BACKWARD


def _filled(rows: int, batch: int) -> int:
    """Rows with the last batch filled up."""
    return -(-rows // batch) * batch


@contextmanager
def counted(pipe: DiffusionPipeline, bar: Bar) -> Iterator[None]:
    """Let the bar follow the pipeline's denoiser inside the ``with`` block."""

    def count(_module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: object) -> None:
        bar.advance(len(inputs[0]) * (BACKWARD if torch.is_grad_enabled() else 1))

    handle = pipe.unet.register_forward_hook(count)
    try:
        yield
    finally:
        handle.remove()
