"""Does the model treat this caption as one it knows by heart: the detectors' contract, and the registry of them.

A detector scores captions alone. It needs no training image, so it also scores suspects whose image is lost; it says
nothing about which image would come out. Every detector gives one score to a (caption, seed) pair, higher = more
likely memorized; a caption's score is the mean over its seeds. Those that only listen to an ordinary generation can
also ride along with one that is made anyway (:class:`ListeningDetector`), at no cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard

from diffkit.errors import InputError
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from memorization.generation import Sampling
    from memorization.text_embeddings import Embedded

__all__ = ["Detector", "ListeningDetector", "Need", "detectors", "listens", "make_detector"]

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
    """What is asked of every detector.

    Attributes:
        name: as registered.
        higher_is_memorized: the direction of the score; True for all of ours.
        needs: what it must have beside calls of the denoiser: a "gradient" (or Jacobian product) through it, its
            "attention" probabilities, layer "activations", the training "image", a whole denoising "trajectory"; and
            what not every family has: an "unconditional" prediction, one "end_token" in the sequence of the text, the
            "noise_level" of a timestep, latents that are a "map". See :mod:`memorization.detection.compatibility`.
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

        A row depends on its own embedding and seed only. A row whose arithmetic broke (half precision) is NaN; the
        caller reports it as unknown with a reason.

        Args:
            prompt_embeds: n rows, one for each (caption, seed) pair; (n, L, D) where the family has no companions.
            negative_prompt_embeds: the empty caption, one row, the same for all.
            seeds: n seeds of the initial noise.
            sampling: step count and guidance of the generation that is judged, and the constant batch size.
            ends: n positions of the end token in the rows, where a detector needs them; None if the rows were made
                from no caption.

        Returns:
            (n,) float32 on the CPU.

        Raises:
            ScoringError: this model or sampling gives the detector nothing to measure; the message is the reason.
        """
        ...

    def cost(self, sampling: Sampling) -> float:
        """Rows through the denoiser for one (caption, seed) pair, in units of a forward pass.

        A guided step counts 2; a row with a gradient counts 3, a row with a forward-mode Jacobian product 2.
        """
        ...


class ListeningDetector(Detector, Protocol):
    """A detector that can also listen to a generation somebody else makes."""

    def record(self, pipe: DiffusionPipeline) -> AbstractContextManager[list[Tensor]]:
        """Listen to the pipeline inside a ``with`` block; what was heard grows in the list."""
        ...

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of one pipeline call's samples, or None where nothing could be heard."""
        ...


def listens(detector: Detector) -> TypeGuard[ListeningDetector]:
    """Whether the detector can ride along with an ordinary generation (``generate(..., detector=)``)."""
    return hasattr(detector, "record") and hasattr(detector, "score")


_HERE = "memorization.detection"

detectors: Registry[Callable[..., Detector]] = Registry(
    "detector",
    "diffkit.detectors",
    builtins={
        "noise_magnitude": f"{_HERE}.noise_magnitude:NoiseMagnitude",
        "anisotropy": f"{_HERE}.anisotropy:Anisotropy",
        "attention_entropy": f"{_HERE}.cross_attention:AttentionEntropy",
        "attention_entropy_one_step": f"{_HERE}.cross_attention:OneStepAttentionEntropy",
        "sharpness": f"{_HERE}.sharpness:Sharpness",
        "bright_ending": f"{_HERE}.bright_ending:BrightEnding",
        "curvature_difference": f"{_HERE}.curvature_difference:CurvatureDifference",
        "seed_agreement": f"{_HERE}.seed_agreement:SeedAgreement",
    },
)


def make_detector(spec: str) -> Detector:
    """A detector by its registered name, with options where wanted: ``noise_magnitude:steps=1``.

    Args:
        spec: the name, then any number of ``:option=number``.

    Raises:
        InputError: nobody registered the name, or the detector has no such option.
    """
    name, *parts = spec.split(":")
    factory = detectors.get(name)
    options = dict(_option(spec, part) for part in parts)
    known = list(inspect.signature(factory).parameters)
    wrong = [key for key in options if key not in known]
    if wrong:
        listing = ", ".join(known) if known else "none"
        raise InputError(f"The detector {name!r} has no option {wrong[0]!r}. Its options: {listing}.")
    return factory(**options)


def _option(spec: str, part: str) -> tuple[str, int | float]:
    key, equals, text = part.partition("=")
    try:
        number = float(text)
    except ValueError:
        equals = ""
    if not key or not equals:
        raise InputError(f"Expected a detector such as noise_magnitude:steps=1, got {spec!r}.")
    return key, int(number) if number.is_integer() and "." not in text else number
