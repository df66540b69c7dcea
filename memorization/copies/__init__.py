"""Is this image a copy of that one: the contract every copy detector keeps, and the registry of them.

A similarity means nothing without the detector, its preprocessing and its threshold, so all three travel together
into every result. Others (SSCD with its own weights, for one) join by the entry-point group ``diffkit.copies``.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Protocol

from diffkit.errors import InputError
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
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


#: Factories by name. One that takes ``pipe`` gets the audited pipeline, one that takes ``path`` what follows the colon.
copy_detectors: Registry[Callable[..., CopyDetector]] = Registry(
    "copy detector",
    "diffkit.copies",
    builtins={
        "tiled": "memorization.copies.tiled:TiledCorrelation",
        "ms-ssim": "memorization.copies.ms_ssim:MsSsim",
        "latent": "memorization.copies.latent:LatentCorrelation",
        "sscd": "memorization.copies.sscd:SSCDSimilarity",
        "sscd-288": "memorization.copies.sscd:small_edge",
    },
)


def load_copy_detector(detector: str | CopyDetector = "tiled", pipe: DiffusionPipeline | None = None) -> CopyDetector:
    """A copy detector by its registered name, with its weights after a colon: ``sscd:/weights/sscd``.

    Args:
        detector: the name; an object of the protocol passes through.
        pipe: the audited pipeline, for detectors that look at its latents; a network of their own goes to its device.

    Raises:
        InputError: nobody registered the name, it takes no path, or it needs a pipeline and none is given.
    """
    if not isinstance(detector, str):
        return detector
    name, _, path = detector.partition(":")
    factory = copy_detectors.get(name)
    takes = signature(factory).parameters
    if path and "path" not in takes:
        raise InputError(f"The copy detector {name!r} takes no path; write {name} in place of {detector}.")
    options: dict[str, object] = {"path": path} if path else {}
    if "pipe" in takes:
        if pipe is None and takes["pipe"].default is Parameter.empty:
            raise InputError(f"The copy detector {name!r} looks at a model's latents; load it with a pipeline.")
        options["pipe"] = pipe
    return factory(**options)
