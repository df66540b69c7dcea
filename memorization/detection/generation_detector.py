"""The base of the detectors that score an ordinary guided generation."""

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
from memorization.detection.denoiser_queries import DenoiserBatch, batches, in_batches
from memorization.generation import call_arguments, generated_latents, is_guided
from memorization.text_embeddings import Embedded

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from memorization.generation import Sampling


@torch.no_grad()
def denoise(pipe: Pipeline, batch: DenoiserBatch, sampling: Sampling, *, steps: int | None = None) -> Tensor:
    """Latents of the unmodified pipeline on a batch, after its first ``steps`` steps where given.

    (B, C, h, w), or packed as the pipeline's loop has them.
    """
    arguments = call_arguments(pipe, batch.conditional, batch.unconditional, batch.seeds, sampling)
    return generated_latents(pipe, arguments, steps)


def require_guidance(name: str, pipe: Pipeline, sampling: Sampling) -> None:
    """Refuse a generation without unconditional predictions.

    Raises:
        ScoringError: guidance of at most 1.
    """
    if not is_guided(pipe, sampling):
        raise ScoringError(f"{name} compares with and without the caption: it needs guidance above 1")


def end_positions(name: str, ends: Sequence[int] | None, batch: DenoiserBatch) -> Tensor:
    """(B,) position of each row's end token.

    Raises:
        ScoringError: the rows do not encode captions.
    """
    if ends is None:
        raise ScoringError(f"{name} needs to know where the caption ends: score captions, not bare embeddings")
    return torch.tensor([ends[row] for row in batch.rows])


def require_scores(name: str, scores: Tensor | None) -> Tensor:
    """The scores, if any.

    Raises:
        ScoringError: nothing could be recorded.
    """
    if scores is None:
        raise ScoringError(f"{name} could record nothing to score in this pipeline's generation")
    return scores


Finish = Callable[[Tensor], Tensor]


class GenerationDetector(ABC):
    """Base of the detectors whose score follows from an ordinary generation.

    Several of them can score one and the same generation (:func:`score_shared_generation`): hooks change nothing, so
    that each gives the score it would give alone.

    Args:
        steps: denoising steps to record, from the first; None = all of them.

    Raises:
        InputError: fewer than one step.
    """

    name: ClassVar[str]
    higher_is_memorized = True
    needs: frozenset[Need] = frozenset({"trajectory"})

    def __init__(self, steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise InputError(f"{self.name} records at least 1 step, got {steps}.")
        self.steps = steps

    @abstractmethod
    def observe(
        self, pipe: DiffusionPipeline, batch: DenoiserBatch, sampling: Sampling, ends: Sequence[int] | None
    ) -> AbstractContextManager[Finish]:
        """Record the generation of a batch inside a ``with`` block.

        Yields a function that is called after the block, with the final latents (B, C, h, w), and gives (B,) scores.

        Raises:
            ScoringError: the generation cannot be scored.
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

        def score(batch: DenoiserBatch) -> Tensor:
            with self.observe(pipe, batch, sampling, ends) as finish:
                latents = denoise(pipe, batch, sampling, steps=self.steps)
            return finish(latents)

        return in_batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling, score)

    def cost(self, sampling: Sampling) -> float:
        """A row, or two under guidance, for every recorded step."""
        guided = 2.0 if sampling.guidance_scale > 1 else 1.0
        return guided * min(self.steps or sampling.num_inference_steps, sampling.num_inference_steps)


def score_shared_generation(
    pipe: Pipeline,
    generation_detectors: Mapping[str, GenerationDetector],
    prompt_embeds: Embedded,
    negative_prompt_embeds: Embedded,
    seeds: Sequence[int],
    *,
    sampling: Sampling,
    ends: Sequence[int] | None = None,
) -> dict[str, Tensor | str]:
    """Scores of several detectors from one generation: key -> (n,) scores, or the reason why there are none."""
    parts: dict[str, list[Tensor]] = {key: [] for key in generation_detectors}
    counts = [detector.steps for detector in generation_detectors.values()]
    steps = None if None in counts else max(count for count in counts if count is not None)
    reasons: dict[str, str] = {}
    for batch in batches(pipe, prompt_embeds, negative_prompt_embeds, seeds, sampling):
        finishes: dict[str, Finish] = {}
        with ExitStack() as stack:
            for key, detector in generation_detectors.items():
                try:
                    finishes[key] = stack.enter_context(detector.observe(pipe, batch, sampling, ends))
                except ScoringError as error:
                    reasons[key] = str(error)
            latents = denoise(pipe, batch, sampling, steps=steps)
        for key, finish in finishes.items():  # after the block: further calls of the denoiser are not recorded
            try:
                parts[key].append(finish(latents)[: batch.real].detach().float().cpu())
            except ScoringError as error:
                reasons[key] = str(error)
    return {key: reasons[key] if key in reasons else torch.cat(scores) for key, scores in parts.items()}
