"""The copy detector's operating point, from the audit's own images, and which of these are near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from memorization.copies import CopyDetector, OperatingPoint
from memorization.copies.calibrate import calibrate_copy_detector
from memorization.copies.near_duplicates import Reader, different_pictures, duplicate_threshold, group_duplicates
from memorization.copies.references import load_references
from memorization.generation import round_trip
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


CALIBRATION_IMAGES = 64  # their pairs are thousands; more would only cost time


def operating_point(
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    copies: CopyDetector,
    size: tuple[int, int],
    threshold: float | None = None,
) -> OperatingPoint:
    """The copy detector's threshold and its rates on pairs made from the items' own images.

    Args:
        pipe: the audited pipeline; its autoencoder makes some of the copies.
        items: suspects and controls; with fewer than two images that are no near-duplicates nothing is calibrated.
        copies: the copy detector.
        size: (height, width) of the images that the pipeline makes.
        threshold: use this one and only measure it.
    """
    with_image = [item for item in items if item.suspect.images]
    stride = -(-len(with_image) // CALIBRATION_IMAGES) or 1  # spread over suspects and controls
    references = [load_references(item, size).images for item in with_image[::stride]]
    images = [stack[0] for stack in references if stack is not None]
    if images:
        images = [images[row] for row in different_pictures(torch.stack(images), copies)]
    if len(images) < 2:
        return {
            "detector": copies.name,
            "preprocessing": copies.preprocessing,
            "threshold": copies.threshold if threshold is None else threshold,
            "source": "not calibrated: fewer than two different images",
        }
    return calibrate_copy_detector(
        copies, torch.stack(images), round_trip=lambda x: round_trip(pipe, x), threshold=threshold
    ).to_json()


def near_duplicates(
    items: Sequence[AuditItem], copies: CopyDetector, size: tuple[int, int], threshold: float
) -> dict[str, int]:
    """Cluster of every suspect and control by key; suspects join suspects, controls join controls."""
    labels_by_key: dict[str, int] = {}
    for role in ("suspect", "control"):
        group = [item for item in items if item.role == role]
        labels = group_duplicates(len(group), _reader(group, size), copies, duplicate_threshold(threshold))
        labels_by_key |= {item.key: label for item, label in zip(group, labels, strict=True)}
    return labels_by_key


def repeated_controls(items: Sequence[AuditItem], copies: CopyDetector, size: tuple[int, int]) -> dict[str, str]:
    """Controls that show the picture of an earlier one, as data with several captions an image has: key -> its key.

    By the detector's own threshold: the operating point, which is calibrated or given, says nothing of them. A control
    without a picture repeats none.
    """
    controls = [item for item in items if item.role == "control"]
    labels = group_duplicates(len(controls), _reader(controls, size), copies, duplicate_threshold(copies.threshold))
    firsts = [controls[labels.index(label)] for label in labels]
    return {item.key: first.key for item, first in zip(controls, firsts, strict=True) if item is not first}


def _reader(items: Sequence[AuditItem], size: tuple[int, int]) -> Reader:
    """Reads the pictures of an item by its index."""

    def read(index: int) -> torch.Tensor | None:
        return load_references(items[index], size).images

    return read
