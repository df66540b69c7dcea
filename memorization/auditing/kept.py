"""What an audit computes once from its images and keeps in its folder: the operating point, the near-duplicates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

from diffkit import parallel
from diffkit.runs.files import OPERATING_POINT
from memorization.copies import CopyDetector, OperatingPoint
from memorization.copies.near_duplicates import duplicate_threshold
from memorization.copies.operating_point import near_duplicates, operating_point
from memorization.items import AuditItem

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffkit.runs import Run

__all__ = ["NEAR_DUPLICATES", "kept_near_duplicates", "kept_operating_point"]

NEAR_DUPLICATES = "near_duplicates.json"
KEPT_SCHEMA = 1

T = TypeVar("T")


def kept_operating_point(
    run: Run | None,
    pipe: DiffusionPipeline,
    items: Sequence[AuditItem],
    copies: CopyDetector,
    size: tuple[int, int],
    threshold: float | None,
) -> OperatingPoint:
    """:func:`~memorization.copies.operating_point.operating_point` of the first process, on every process.

    Args:
        run: on the first process, None on the others. The remaining arguments are those of the function.
    """
    point: OperatingPoint | None = None
    if run is not None:
        identity = {**_detector(copies, size), "given_threshold": threshold}
        point = _kept(run, OPERATING_POINT, identity, lambda: operating_point(pipe, items, copies, size, threshold))
    return cast("OperatingPoint", parallel.broadcast(point))


def kept_near_duplicates(
    run: Run, items: Sequence[AuditItem], copies: CopyDetector, size: tuple[int, int], threshold: float
) -> dict[str, int]:
    """:func:`~memorization.copies.operating_point.near_duplicates` of the finished audit in ``run``.

    An image that could not be read the first time has joined no group, so the number of unscored items counts too.
    """
    unscored = sum(run.done[item.key]["reason"] is not None for item in items)
    identity = {**_detector(copies, size), "threshold": duplicate_threshold(threshold), "unscored": unscored}
    return _kept(run, NEAR_DUPLICATES, identity, lambda: near_duplicates(items, copies, size, threshold))


def _detector(copies: CopyDetector, size: tuple[int, int]) -> dict[str, object]:
    """What it depends on beside the run's own configuration, which states the images' contents."""
    return {"detector": copies.name, "preprocessing": copies.preprocessing, "size": list(size)}


def _kept(run: Run, name: str, identity: Mapping[str, object], compute: Callable[[], T]) -> T:
    """The value in a JSON file of the run, if it has that identity; else computed and written there."""
    identity = {"schema_version": KEPT_SCHEMA, **identity}
    try:
        content = json.loads(run.path(name).read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.keys() != {*identity, "value"}:
        content = None
    if content is None or any(content[key] != value for key, value in identity.items()):
        content = json.loads(run.write_json(name, {**identity, "value": compute()}).read_bytes())
    return cast("T", content["value"])
