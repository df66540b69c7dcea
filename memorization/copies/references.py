"""The images that a suspect or control is compared with, scaled to the size that the model makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from diffkit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from memorization.items import AuditItem


NO_IMAGE = "no image to compare with"


class References(NamedTuple):
    """(R, 3, H, W) reference images of one item, or None and the reason."""

    images: Tensor | None
    reason: str | None


def load_references(item: AuditItem, size: tuple[int, int]) -> References:
    """Read an item's images at the model's size; one that cannot be read makes the item unscored, with the reason."""
    import torch

    from diffkit.images import load_image
    from diffkit.seeds import item_seed
    from memorization.auditing.edited_controls import edit

    if not item.suspect.images:
        return References(None, NO_IMAGE)
    try:
        images = torch.stack([load_image(path, size) for path in item.suspect.images])
    except (InputError, OSError) as error:
        return References(None, str(error))
    if item.edit is None:
        return References(images, None)
    seed = item_seed(0, item.key, "edit")  # the run's seed has no part in it: an edit is an image of its own
    return References(torch.stack([edit(item.edit, images[0], seed)]), None)


def in_error(items: Iterable[AuditItem], records: Mapping[str, Mapping[str, Any]], size: tuple[int, int]) -> list[str]:
    """Keys of the finished items that could not be scored and may be another time.

    One whose images cannot be read, for the same reason as before, is not among them, if a detector could score it.
    """
    unscored = [(item, records[item.key]) for item in items if item.key in records and records[item.key]["reason"]]
    return [
        item.key
        for item, record in unscored
        if any(score["value"] is None for score in record.get("detectors", {}).values())
        or load_references(item, size).reason != record["reason"]
    ]
