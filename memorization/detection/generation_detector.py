"""Detectors that listen to an ordinary guided generation: the base that makes one when nobody else does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from diffkit.errors import InputError, ScoringError
from diffkit.families import Pipeline
from memorization.detection.base import Need
from memorization.detection.denoiser_queries import Batch, batches, in_batches
from memorization.generation import call_arguments, is_guided, stopping
from memorization.text_embeddings import Embedded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling


@torch.no_grad()
def denoise(pipe: Pipeline, batch: Batch, sampling: Sampling, *, steps: int | None = None) -> Tensor:
    """Latents of the unmodified pipeline on a batch, after its first ``steps`` steps where given.

    (B, C, h, w), or packed as the pipeline's loop has them.
    """
    arguments = call_arguments(pipe, batch.conditional, batch.unconditional, batch.seeds, sampling)
    latents: Tensor = pipe(**arguments, output_type="latent", **stopping(pipe, steps)).images
    return latents


def require_guidance(name: str, pipe: Pipeline, sampling: Sampling) -> None:
    """Refuse a generation that never asks what the model would draw without the caption.

    Raises:
        ScoringError: guidance of at most 1.
    """
    if not is_guided(pipe, sampling):
        raise ScoringError(f"{name} compares with and without the caption: it needs guidance above 1")


def end_positions(name: str, ends: Sequence[int] | None, batch: Batch) -> Tensor:
    """(B,) position of each row's end token.

    Raises:
        ScoringError: the rows were made from no caption.
    """
    if ends is None:
        raise ScoringError(f"{name} needs to know where the caption ends: score captions, not bare embeddings")
    return torch.tensor([ends[row] for row in batch.rows])


def heard_or_refused(name: str, scores: Tensor | None) -> Tensor:
    """The scores, if any.

    Raises:
        ScoringError: nothing was heard.
    """
    if scores is None:
        raise ScoringError(f"{name} heard nothing it could score in this pipeline's generation")
    return scores


Finish = Callable[[Tensor], Tensor]


class GenerationDetector(ABC):
    """Base of the detectors whose score follows from an ordinary generation.

    Several of them can listen to one and the same generation (:func:`together`): hooks change nothing, so that each
    gives the score it would give alone.

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
    def listen(
        self, pipe: DiffusionPipeline, batch: Batch, sampling: Sampling, ends: Sequence[int] | None
    ) -> AbstractContextManager[Finish]:
        """Listen to the generation of a batch inside a ``with`` block.

        What it yields is called after the block, with the final latents (B, C, h, w), and gives (B,) scores.

        Raises:
            ScoringError: there would be nothing to hear, or there was nothing.
        """

    def scores(
        self,
        pipe: DiffusionPipeline,
        prompt_embeds: Embedded,
        negative_prompt_embeds: Embedded,
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        ends: Sequence[int] | None = None,
    ) -> Tensor:
        """See :class:`memorization.detection.base.Detector`."""

        def score(batch: Batch) -> Tensor:
            with self.listen(pipe, batch, sampling, ends) as finish:
                latents = denoise(pipe, batch, sampling, steps=self.steps)
            return finish(latents)

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling, score)

    def cost(self, sampling: Sampling) -> float:
        """A row, or two under guidance, for every step that is listened to."""
        guided = 2.0 if sampling.guidance_scale > 1 else 1.0
        return guided * min(self.steps or sampling.num_inference_steps, sampling.num_inference_steps)


def together(
    pipe: Pipeline,
    listeners: Mapping[str, GenerationDetector],
    prompt_embeds: Embedded,
    negative_prompt_embeds: Embedded,
    seeds: Sequence[int],
    *,
    sampling: Sampling,
    ends: Sequence[int] | None = None,
) -> dict[str, Tensor | str]:
    """What several detectors hear in one generation: key -> (n,) scores, or the reason why there are none."""
    parts: dict[str, list[Tensor]] = {key: [] for key in listeners}
    wanted = [listener.steps for listener in listeners.values()]
    steps = None if None in wanted else max(step for step in wanted if step is not None)
    reasons: dict[str, str] = {}
    for batch in batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling):
        finishes: dict[str, Finish] = {}
        with ExitStack() as stack:
            for key, listener in listeners.items():
                try:
                    finishes[key] = stack.enter_context(listener.listen(pipe, batch, sampling, ends))
                except ScoringError as error:
                    reasons[key] = str(error)
            latents = denoise(pipe, batch, sampling, steps=steps)
        for key, finish in finishes.items():  # after the block: what a score still asks of the denoiser is not heard
            try:
                parts[key].append(finish(latents)[: batch.real].detach().float().cpu())
            except ScoringError as error:
                reasons[key] = str(error)
    return {key: reasons[key] if key in reasons else torch.cat(found) for key, found in parts.items()}
