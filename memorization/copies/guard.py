"""The copy guard of searches: pictures that no winner may copy, compared by a copy detector.

Registered as ``similarity`` in :data:`diffkit.copy_guard.COPY_GUARDS`, so that searches need not know this package. An
image is a copy from the detector's operating point on: its threshold, raised where more than 1 % of the non-copies made
of the forbidden pictures would pass it (:mod:`memorization.copies.calibrate`). Near-duplicates among the pictures count
once there, since a guard must not become lax because it holds two shots of one subject.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffkit.copy_guard import CopyCheck
from diffkit.errors import InputError
from diffkit.families import default_size
from diffkit.finite import finite_rows
from diffkit.images import load_image
from diffkit.lab.assets import pictures_path
from diffkit.runs import sha256_file
from diffkit.suspects.image_files import image_files
from memorization.copies import CopyDetector, OperatingPoint, load_copy_detector
from memorization.copies.calibrate import calibrate_copy_detector
from memorization.copies.finite import finite_similarity
from memorization.copies.near_duplicates import MARGIN, different_pictures
from memorization.copies.operating_point import CALIBRATION_IMAGES
from memorization.generation import round_trip

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["SimilarityGuard", "load"]


class SimilarityGuard:
    """Forbidden pictures with a copy detector.

    Args:
        pictures: (R, 3, H, W) in [0, 1].
        names: of the pictures, for messages.
        detector: compares them with images; one with a method ``describe``, whose products are its similarities,
            describes the pictures only once.
        point: the detector's threshold, and where it comes from.
        sha256: of the pictures, for the record.
    """

    name = "similarity"

    def __init__(
        self,
        pictures: Tensor,
        names: Sequence[str],
        detector: CopyDetector,
        point: OperatingPoint,
        sha256: Sequence[str] = (),
    ) -> None:
        self.pictures, self.names, self.detector, self.point = pictures, names, detector, point
        self.sha256 = list(sha256)
        self._describe: Callable[[Tensor], Tensor] | None = getattr(detector, "describe", None)
        self._described = None if self._describe is None else self._describe(pictures)
        self.flops_per_image = self._counted_flop()

    def check(self, images: Tensor) -> list[CopyCheck]:
        """See :class:`diffkit.copy_guard.CopyGuard`."""
        return [self._verdict(row) for row in self.similarities(images)]

    @torch.no_grad()
    def similarities(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, R) float32 on the CPU, NaN for images that are not finite.

        Preparing references costs most, and the detector's two directions differ little (``MARGIN``): the pictures are
        compared with the few images first, and only those that come near the threshold the other way round.
        """
        images = images.float()
        if self._describe is None or self._described is None:
            pictures = self.pictures.to(images.device)
            table = finite_similarity(self.detector, pictures, images).T.contiguous()
            near = (table >= self.point["threshold"] - MARGIN).any(0).nonzero().flatten()
            if len(near):
                table[:, near] = finite_similarity(self.detector, images, pictures[near.to(images.device)])
            return table
        whole = finite_rows(images).cpu()
        table = torch.full((len(images), len(self.pictures)), torch.nan)
        if bool(whole.any()):
            table[whole] = (self._describe(images[whole]) @ self._described.T).clamp(-1, 1)
        return table

    def card(self) -> dict[str, object]:
        """See :class:`diffkit.copy_guard.CopyGuard`."""
        return {"name": self.name, "pictures": len(self.names), "sha256": self.sha256, **self.point}

    def _verdict(self, row: Tensor) -> CopyCheck:
        highest, threshold = float(row.max()), self.point["threshold"]
        if math.isnan(highest):
            return CopyCheck(highest, "its similarity to the forbidden pictures could not be computed")
        if highest < threshold:
            return CopyCheck(highest, None)
        like = self.names[int(row.argmax())]
        reason = f"like {like}: similarity {highest:.3f} by {self.detector.name}, threshold {threshold:.3f}"
        return CopyCheck(highest, reason)

    def _counted_flop(self) -> float | None:
        """FLOP of one check, counted on the first picture; None where the detector runs outside of torch."""
        with FlopCounterMode(display=False) as counter:
            _ = (self._describe or self.similarities)(self.pictures[:1])
        return float(counter.get_total_flops()) or None


def load(
    location: str, *, pipe: DiffusionPipeline, detector: str = "tiled", threshold: float | str | None = None
) -> SimilarityGuard:
    """A guard of a folder of pictures, of one picture, or of several separated by ``;``.

    Args:
        location: where they are, or ``lab:planted`` or ``gallery:planted``.
        pipe: the pipeline to guard; its autoencoder makes some of the copies for the calibration.
        detector: registered name of a copy detector, with its weights after a colon where it takes some.
        threshold: similarity from which an image is a copy; None for the detector's operating point.

    Raises:
        InputError: no pictures there, one that cannot be read, no such detector, or a threshold that is no number.
    """
    files = _files(location)
    size = default_size(pipe)
    pictures = torch.stack([load_image(file, (size.height, size.width)) for file in files])
    copies = load_copy_detector(detector, pipe)
    point = _operating_point(copies, pictures, pipe, None if threshold is None else _number(threshold))
    sums = [sha256_file(file) for file in files]
    return SimilarityGuard(pictures, [file.name for file in files], copies, point, sums)


def _files(location: str) -> list[Path]:
    if (shipped := pictures_path(location)) is not None:
        return sorted(shipped.glob("*.png"))
    try:
        files = list(image_files(str(Path(location).expanduser()), Path()))
    except ValueError as error:
        raise InputError(f"The copy guard finds no forbidden pictures: {error}.") from error
    if not files:
        raise InputError("The copy guard needs a folder of forbidden pictures, for example --copy-guard forbidden.")
    return files


def _number(threshold: float | str) -> float:
    try:
        number = float(threshold)
    except ValueError:
        number = math.nan
    if not -1 <= number <= 1:
        raise InputError(f"The threshold of a copy guard is a similarity from -1 to 1, got {threshold!r}.")
    return number


def _operating_point(
    copies: CopyDetector, pictures: Tensor, pipe: DiffusionPipeline, threshold: float | None
) -> OperatingPoint:
    """The detector's, from pairs of the pictures that are no near-duplicates; its own where there are none."""
    different = different_pictures(pictures, copies)
    chosen = different[:: -(-len(different) // CALIBRATION_IMAGES)]
    if len(chosen) < 2:
        return {
            "detector": copies.name,
            "preprocessing": copies.preprocessing,
            "threshold": copies.threshold if threshold is None else threshold,
            "source": "not calibrated: fewer than two different pictures" if threshold is None else "given",
        }
    return calibrate_copy_detector(
        copies, pictures[chosen], round_trip=lambda images: round_trip(pipe, images), threshold=threshold
    ).to_json()
