"""Calibration of a copy detector: its rates on labelled pairs made from a set of images.

Copies are made from each image by the distortions below (and, where given, by the audited model's own autoencoder,
which every generated image passes through). Non-copies are pairs of different images and opposite
quarters of one image. Near-duplicates among the images would be counted as false positives: leave them out.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError
from diffkit.images import to_pil, to_tensor
from diffkit.stats import auc, clopper_pearson, tpr_at_fpr
from memorization.copies import CopyDetector, OperatingPoint
from memorization.copies.finite import finite_similarity

Distortion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CopyCalibration:
    """A copy detector's operating point and its rates on labelled pairs.

    Attributes:
        threshold: similarity from which a pair counts as a copy.
        tpr: share of the copies at or above the threshold; ``fpr``: share of the non-copies.
        tpr_at_1_fpr: share of the copies above all but 1 % of the non-copies, whatever the threshold.
        auc: probability that a copy scores above a non-copy.
        by_distortion: share of the copies at or above the threshold, for each way of making them.
    """

    detector: str
    preprocessing: str
    threshold: float
    source: str
    images: int
    copies: int
    non_copies: int
    tpr: float
    tpr_interval: tuple[float, float]
    fpr: float
    fpr_interval: tuple[float, float]
    tpr_at_1_fpr: float
    auc: float
    by_distortion: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> OperatingPoint:
        """The fields as JSON values."""
        return cast("OperatingPoint", asdict(self))


def calibrate_copy_detector(
    detector: CopyDetector,
    images: Tensor,
    *,
    round_trip: Distortion | None = None,
    max_fpr: float = 0.01,
    threshold: float | None = None,
) -> CopyCalibration:
    """Measure a detector on pairs made from ``images`` and choose the operating point.

    The threshold is the detector's own, raised where more than ``max_fpr`` of the non-copies would pass it. Raising
    only, never lowering: pairs of unlike images say little about the likeness of two pictures of one subject.

    Args:
        detector: the copy detector.
        images: (N, 3, H, W) in [0, 1], N >= 2, all different.
        round_trip: images -> images through the audited model's autoencoder.
        max_fpr: share of the non-copies that may pass, in (0, 1).
        threshold: use this one and only measure it.

    Raises:
        InputError: fewer than two images, or a similarity is not a number.
    """
    if len(images) < 2:
        raise InputError(f"Calibrating a copy detector takes at least 2 different images, got {len(images)}.")
    ways = {**DISTORTIONS, **({"autoencoder": round_trip} if round_trip else {})}
    copies = dict(zip(ways, _paired(detector, [way(images) for way in ways.values()], images), strict=True))
    non_copies = _non_copies(detector, images)
    positives = torch.cat(list(copies.values())).double()
    if not (positives.isfinite().all() and non_copies.isfinite().all()):
        raise InputError(
            "The model's autoencoder, or an image, gives values that are not numbers; try --dtype float32."
        )
    source = "given"
    if threshold is None:
        floor = _above_all_but(non_copies, max_fpr)
        threshold = max(detector.threshold, floor)
        source = f"at most {max_fpr:.0%} of the non-copies" if floor > detector.threshold else "the detector's default"
    hits, alarms = int((positives >= threshold).sum()), int((non_copies >= threshold).sum())
    return CopyCalibration(
        detector=detector.name,
        preprocessing=detector.preprocessing,
        threshold=threshold,
        source=source,
        images=len(images),
        copies=len(positives),
        non_copies=len(non_copies),
        tpr=hits / len(positives),
        tpr_interval=clopper_pearson(hits, len(positives)),
        fpr=alarms / len(non_copies),
        fpr_interval=clopper_pearson(alarms, len(non_copies)),
        tpr_at_1_fpr=tpr_at_fpr(positives.tolist(), non_copies.tolist(), 0.01),
        auc=auc(positives.tolist(), non_copies.tolist()),
        by_distortion={name: float((scores.double() >= threshold).double().mean()) for name, scores in copies.items()},
    )


def _non_copies(detector: CopyDetector, images: Tensor) -> Tensor:
    """Similarities of all pairs of different images, and of opposite quarters of each image."""
    apart = ~torch.eye(len(images), dtype=torch.bool)
    h, w = images.shape[-2] // 2, images.shape[-1] // 2
    corners = [(images[..., :h, :w], images[..., h:, w:]), (images[..., :h, w:], images[..., h:, :w])]
    quarters = [_paired(detector, [first], second)[0] for first, second in corners]
    return torch.cat([detector.similarity(images, images)[apart], *quarters]).double()


def _paired(detector: CopyDetector, versions: Sequence[Tensor], references: Tensor) -> Tensor:
    """(V, n) similarities of each version of the n images to its own reference.

    In blocks that waste little; all versions at once, since preparing the references costs most.
    """
    rows = []
    for first in range(0, len(references), 4):
        block = slice(first, first + 4)
        scores = finite_similarity(detector, torch.cat([images[block] for images in versions]), references[block])
        rows.append(scores.unflatten(0, (len(versions), -1)).diagonal(dim1=1, dim2=2))
    return torch.cat(rows, 1)


def _above_all_but(scores: Tensor, share: float) -> float:
    """The smallest threshold that at most ``share`` of the scores reach."""
    ranked = scores.sort(descending=True).values
    allowed = int(share * len(ranked))
    return float(np.nextafter(float(ranked[allowed]), np.inf)) if allowed < len(ranked) else -1.0


# ------------------------------------------------------------------------------------- ways to make a copy


def crop(images: Tensor) -> Tensor:
    """The middle 84 % of each side, enlarged."""
    h, w = images.shape[-2:]
    y, x = round(0.08 * h), round(0.08 * w)
    inner = images[..., y : h - y, x : w - x]
    return F.interpolate(inner, size=(h, w), mode="bilinear", antialias=True, align_corners=False)


def blur(images: Tensor) -> Tensor:
    """A box blur of a sixteenth of the side."""
    radius = max(1, images.shape[-1] // 32)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def recompress(images: Tensor) -> Tensor:
    """JPEG at quality 30 and back."""
    decoded = []
    for image in images:
        buffer = io.BytesIO()
        to_pil(image).save(buffer, "JPEG", quality=30)
        with Image.open(buffer) as picture:
            decoded.append(to_tensor(picture.convert("RGB")))
    return torch.stack(decoded).to(images)


def shift(images: Tensor) -> Tensor:
    """Moved right and down by a thirty-second of the side, edges repeated."""
    h, w = images.shape[-2:]
    y, x = max(1, h // 32), max(1, w // 32)
    return F.pad(images, (x, 0, y, 0), mode="replicate")[..., :h, :w]


def fade(images: Tensor) -> Tensor:
    """Less contrast and a little brighter."""
    return (0.7 * images + 0.2).clamp(0, 1)


DISTORTIONS: dict[str, Distortion] = {
    "crop": crop,
    "blur": blur,
    "recompress": recompress,
    "shift": shift,
    "fade": fade,
}
