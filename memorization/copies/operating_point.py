"""The copy detector's operating point, from the audit's own images, and which of them are near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from memorization.auditing.settings import AuditSettings
from memorization.copies import CopyDetector
from memorization.copies.calibrate import calibrate
from memorization.copies.clusters import clusters, duplicate_threshold, reference_similarity
from memorization.generation import round_trip
from memorization.items import AuditItem
from memorization.references import load_references

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


CALIBRATION_IMAGES = 64  # their pairs are thousands; more would only cost time


def operating_point(
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    copies: CopyDetector,
    settings: AuditSettings,
    size: tuple[int, int],
) -> dict[str, Any]:
    """The copy detector's threshold, and its rates on pairs made from the audit's own images where there are two."""
    with_image = [item for item in items if item.suspect.images]
    stride = -(-len(with_image) // CALIBRATION_IMAGES) or 1  # spread over suspects and controls
    known = [load_references(item, size).images for item in with_image[::stride]]
    images = [stack[0] for stack in known if stack is not None]
    if len(images) >= 2:
        point = calibrate(
            copies, torch.stack(images), round_trip=lambda x: round_trip(pipe, x), threshold=settings.threshold
        )
        return point.to_json()
    return {
        "detector": copies.name,
        "preprocessing": copies.preprocessing,
        "threshold": copies.threshold if settings.threshold is None else settings.threshold,
        "source": "not calibrated: fewer than two images",
    }


def near_duplicates(
    items: Sequence[AuditItem], copies: CopyDetector, size: tuple[int, int], threshold: float
) -> dict[str, int]:
    """Cluster of every suspect and control by key; suspects join suspects, controls join controls."""
    found: dict[str, int] = {}
    for role in ("suspect", "control"):
        group = [item for item in items if item.role == role]
        alike = reference_similarity(copies, [load_references(item, size).images for item in group])
        labels = clusters(alike, duplicate_threshold(threshold))
        found |= {item.key: label for item, label in zip(group, labels, strict=True)}
    return found
