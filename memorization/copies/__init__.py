"""Is this image a copy of that one: the contract every copy detector keeps, and the registry of them.

A similarity means nothing without the detector, its preprocessing and its threshold, so all three travel together
into every result. Others (SSCD with its own weights, for one) join by the entry-point group ``diffkit.copies``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from diffkit.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class CopyDetector(Protocol):
    """What the audit asks of a copy detector.

    Attributes:
        name: as registered.
        preprocessing: how pictures are prepared, in words; scores with another preparation are not comparable.
        threshold: similarity from which two pictures count as copies, before any calibration raises it.
    """

    name: str
    preprocessing: str
    threshold: float

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        """(A, 3, H, W) and (B, 3, H', W') in [0, 1] to (A, B) float32 in [-1, 1]; higher = more alike."""
        ...


copy_detectors: Registry[Callable[[], CopyDetector]] = Registry(
    "copy detector", "diffkit.copies", builtins={"tiled": "memorization.copies.tiled:TiledCorrelation"}
)


def load_copy_detector(detector: str | CopyDetector = "tiled") -> CopyDetector:
    """A copy detector by its registered name; an object of the protocol passes through.

    Raises:
        InputError: nobody registered the name.
    """
    if isinstance(detector, str):
        return copy_detectors.get(detector)()
    return detector
