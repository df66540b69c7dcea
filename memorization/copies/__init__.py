"""Copy detectors: whether one image is a copy of another. The protocol they implement, and their registry.

A similarity is meaningful only with the detector, its preprocessing and its threshold, so every result names all three.
Other packages add copy detectors by the entry-point group ``diffkit.copies``.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import (
    TYPE_CHECKING,
    NotRequired,  # pydantic reads typing's own only from Python 3.12
    Protocol,
)

from typing_extensions import TypedDict

from diffkit.errors import InputError
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor


class CopyDetector(Protocol):
    """A copy detector.

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


class OperatingPoint(TypedDict):
    """A copy detector's threshold, and its rates on labelled pairs where it was calibrated, as JSON.

    See :class:`~memorization.copies.calibrate.CopyCalibration`.
    """

    detector: str
    preprocessing: str
    threshold: float
    source: str
    images: NotRequired[int]
    copies: NotRequired[int]
    non_copies: NotRequired[int]
    tpr: NotRequired[float]
    tpr_interval: NotRequired[tuple[float, float]]
    fpr: NotRequired[float]
    fpr_interval: NotRequired[tuple[float, float]]
    tpr_at_1_fpr: NotRequired[float]
    auc: NotRequired[float]
    by_distortion: NotRequired[dict[str, float]]


#: Factories by name: a parameter ``pipe`` receives the audited pipeline, a parameter ``path`` the text after the colon.
copy_detectors: Registry[Callable[..., CopyDetector]] = Registry(
    "copy detector",
    "diffkit.copies",
    builtins={
        "tiled": "memorization.copies.tiled:TiledCorrelation",
        "ms-ssim": "memorization.copies.ms_ssim:MsSsim",
        "latent": "memorization.copies.latent:LatentCorrelation",
        "sscd": "memorization.copies.sscd:SSCDSimilarity",
        "sscd-288": "memorization.copies.sscd:small_edge",
        "sscd-int8": "memorization.copies.sscd_int8:SSCDInt8Similarity",
    },
)


def load_copy_detector(detector: str | CopyDetector = "tiled", pipe: DiffusionPipeline | None = None) -> CopyDetector:
    """Load a copy detector by its registered name, with its weights after a colon: ``sscd:/weights/sscd``.

    Args:
        detector: the name; an object of the protocol passes through.
        pipe: the audited pipeline, for detectors that look at its latents; a network of their own goes to its device.

    Raises:
        InputError: an unknown name, a path for a detector without one, or no pipeline for one that needs it.

    Example:
        >>> import torch
        >>> from memorization import load_copy_detector
        >>> images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> detector = load_copy_detector("tiled")
        >>> detector.similarity(images, images) >= detector.threshold
        tensor([[ True, False],
                [False,  True]])
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
