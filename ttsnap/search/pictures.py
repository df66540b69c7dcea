"""Pictures that a pipeline begins from, paints in or follows: what belongs to all prompts, and what to each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Family, Pipeline, Size
from ttsnap.search.image_inputs import control_images, picture_batch

__all__ = ["Pictures", "take_pictures"]


class Pictures(NamedTuple):
    """Keyword arguments that are the same for all prompts, and those of each prompt's own; height and width."""

    shared: dict[str, object]
    own: list[dict[str, object]]
    size: tuple[int | None, int | None]


def take_pictures(
    pipe: Pipeline, family: Family, keywords: dict[str, object], prompts: int, size: tuple[int | None, int | None]
) -> Pictures:
    """Take the pictures out of the keyword arguments of a call.

    Args:
        size: height and width in pixels, where the call says them.

    Raises:
        InputError: a picture is missing, or there is not one for all prompts or for each; pictures of different sizes
            where they decide the images' size.
    """
    columns: dict[str, list[object]] = {}
    for name in family.pictures:
        given = keywords.pop(name, None)
        if given is not None:
            columns[name] = _column(family, name, given, prompts)
        elif name not in family.spare_pictures:
            raise InputError(f"{family.pipeline} needs {name}=, one for all prompts or one for each.")
    if family.size_of_picture is not None and family.pictures[0] in columns:
        sizes = {family.size_of_picture(pipe, picture) for picture in columns[family.pictures[0]]}
        size = _size(family, sizes, size)
    if family.control is not None:
        followed = control_images(pipe, family, keywords.pop(family.control, None), prompts, size)
        columns[family.control], size = followed.images, followed.size
    rows = max((len(column) for column in columns.values()), default=1)
    each = [{name: column[row if len(column) > 1 else 0] for name, column in columns.items()} for row in range(rows)]
    return Pictures(each[0], [], size) if rows == 1 else Pictures({}, each, size)


def _column(family: Family, name: str, given: object, prompts: int) -> list[object]:
    """One picture or mask for all prompts or one for each; an array of fewer than 4 dimensions is one."""
    if family.references and name == family.pictures[0]:
        return [given]
    if not isinstance(given, Tensor | np.ndarray) or given.ndim == 4:
        return picture_batch(name, given, prompts)
    if name != family.pictures[0] and given.ndim == 3 and 1 not in (given.shape[0], given.shape[-1]):
        raise InputError(f"{name}= must have 2 dimensions or, for several masks, 4; got shape {tuple(given.shape)}.")
    return [given]


def _size(family: Family, sizes: set[Size], size: tuple[int | None, int | None]) -> tuple[int, int]:
    """Height and width of the images, as the pictures say where the call does not."""
    if len(sizes) > 1 and None in size:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise InputError(f"The pictures of {family.pictures[0]}= have different sizes ({listed}); make them equal.")
    height, width = min(sizes)
    return size[0] or height, size[1] or width
