"""Does the model treat this caption as one it knows by heart: the detectors' contract, and the registry of them.

A detector listens to an ordinary generation and gives every sample a score. It needs no training image, so it also
scores suspects whose image is lost; it says nothing about which image would come out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor


class Detector(Protocol):
    """What the audit asks of a detector.

    Attributes:
        name: as registered.
        higher_is_memorized: the direction of the score.
    """

    name: str
    higher_is_memorized: bool

    def record(self, pipe: DiffusionPipeline) -> AbstractContextManager[list[Tensor]]:
        """Listen to the pipeline inside a ``with`` block; what was heard grows in the list."""
        ...

    def score(self, recorded: list[Tensor]) -> Tensor | None:
        """(B,) scores of one pipeline call's samples, or None where nothing could be heard."""
        ...


detectors: Registry[Callable[[], Detector]] = Registry(
    "detector", "diffkit.detectors", builtins={"noise_magnitude": "memorization.detect.noise_magnitude:NoiseMagnitude"}
)
