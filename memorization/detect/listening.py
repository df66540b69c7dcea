"""Detectors that listen to an ordinary guided generation: the base that makes one when nobody else does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from diffkit.errors import InputError, ScoringError
from diffkit.families import Pipeline
from diffkit.seeds import generators
from memorization.detect import Need
from memorization.detect.probe import Batch, in_batches

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generate import Sampling


@torch.no_grad()
def denoise(pipe: Pipeline, batch: Batch, sampling: Sampling, *, steps: int | None = None) -> Tensor:
    """(B, C, h, w) latents of the unmodified pipeline on a batch, after its first ``steps`` steps where given."""

    def stop(pipe: Pipeline, index: int, _timestep: Tensor, _kwargs: dict[str, Any]) -> dict[str, Any]:
        if steps is not None and index + 1 >= steps:
            pipe._interrupt = True  # the pipeline's own switch; its next call resets it
        return {}

    latents: Tensor = pipe(
        prompt_embeds=batch.conditional,
        negative_prompt_embeds=batch.unconditional,
        generator=generators(batch.seeds),
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        output_type="latent",
        callback_on_step_end=stop,
    ).images
    return latents


def require_guidance(name: str, sampling: Sampling) -> None:
    """Refuse a generation that never asks what the model would draw without the caption.

    Raises:
        ScoringError: guidance of at most 1.
    """
    if sampling.guidance_scale <= 1:
        raise ScoringError(f"{name} compares with and without the caption: it needs guidance above 1")


def end_positions(name: str, ends: Sequence[int] | None, batch: Batch) -> Tensor:
    """(B,) position of each row's end token.

    Raises:
        ScoringError: the rows were made from no caption.
    """
    if ends is None:
        raise ScoringError(f"{name} needs to know where the caption ends: score captions, not bare embeddings")
    return torch.tensor([ends[row] for row in batch.rows])


class TrajectoryDetector(ABC):
    """Base of the detectors whose score follows from what is heard during a guided generation.

    Args:
        steps: denoising steps to listen to, from the first; None takes all of them.

    Raises:
        InputError: fewer than one step.
    """

    name: ClassVar[str]
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"trajectory"})

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise InputError(f"{self.name} listens to at least 1 step, got {steps}.")
        self.steps = steps

    @abstractmethod
    def record(self, pipe: DiffusionPipeline) -> AbstractContextManager[list[Tensor]]:
        """Listen to the pipeline's own calls inside a ``with`` block."""

    @abstractmethod
    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of the samples of one pipeline call; None where nothing was heard."""

    def scores(
        self,
        pipe: DiffusionPipeline,
        prompt_embeds: Tensor,
        negative_prompt_embeds: Tensor,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """See :class:`memorization.detect.Detector`."""
        require_guidance(self.name, sampling)

        def score(batch: Batch) -> Tensor:
            with self.record(pipe) as recorded:
                denoise(pipe, batch, sampling, steps=self.steps)
            found = self.score(recorded)
            if found is None:
                raise ScoringError(f"{self.name} heard no guided step of this pipeline")
            return found

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling.micro_batch, score)

    def cost(self, sampling: Sampling) -> float:
        """Two rows for every step that is listened to."""
        return 2.0 * min(self.steps or sampling.num_inference_steps, sampling.num_inference_steps)
