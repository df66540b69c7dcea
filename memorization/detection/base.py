"""The contract of a detector: one score for each (caption, seed) pair, higher = more likely memorized."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from memorization.generation import Sampling
    from memorization.text_embeddings import Embedded


Need = Literal[
    "gradient",
    "attention",
    "activations",
    "image",
    "trajectory",
    "unconditional",
    "end_token",
    "noise_level",
    "map",
]


class Detector(Protocol):
    """The interface of a detector.

    Attributes:
        name: as registered.
        higher_is_memorized: the direction of the score; True for all of ours.
        needs: requirements besides calls of the denoiser: a "gradient" (or Jacobian product) through it, its
            "attention" probabilities, layer "activations", the training "image", a whole denoising "trajectory"; and
            those that not every family meets: an "unconditional" prediction, one "end_token" in the sequence of the
            text, the "noise_level" of a timestep, latents that are a "map". See
            :mod:`memorization.detection.compatibility`.
    """

    name: str
    higher_is_memorized: bool
    needs: frozenset[Need]

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
        """One score for each row.

        A row depends on its own embedding and seed only. A row whose score is not finite (half precision) is NaN; the
        caller reports it as unknown with a reason.

        Args:
            prompt_embeds: n rows, one for each (caption, seed) pair; (n, L, D) where the family has no companions.
            negative_prompt_embeds: the empty caption, one row, the same for all.
            seeds: n seeds of the initial noise.
            sampling: step count and guidance of the generation that is judged, and the constant batch size.
            ends: n positions of the end token in the rows, where a detector needs them; None if the rows do not encode
                captions.

        Returns:
            (n,) float32 on the CPU.

        Raises:
            ScoringError: the detector cannot score this model or sampling; the message is the reason.
        """
        ...

    def cost(self, sampling: Sampling) -> float:
        """Rows through the denoiser for one (caption, seed) pair, in units of a forward pass.

        A guided step counts 2; a row with a gradient counts 3, a row with a forward-mode Jacobian product 2.
        """
        ...


class RecordingDetector(Detector, Protocol):
    """A detector that can also score a generation that is made for another purpose."""

    def record(self, pipe: DiffusionPipeline) -> AbstractContextManager[list[Tensor]]:
        """Record the pipeline's calls inside a ``with`` block; the recorded tensors are appended to the list."""
        ...

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of one pipeline call's samples, or None if nothing could be recorded."""
        ...


def is_recording(detector: Detector) -> TypeGuard[RecordingDetector]:
    """Whether the detector can score an ordinary generation while it is made (``generate(..., detector=)``)."""
    return hasattr(detector, "record") and hasattr(detector, "score")
