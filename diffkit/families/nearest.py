"""Why a pipeline belongs to no family, and which family is nearest: by its denoiser, its name and its components."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffkit.families.base import Family, keywords_of, stock_class

__all__ = ["nearest_family", "why_unknown"]

NEAR = (0.6, 0.24)  # shares of components, by name and by name and class, from which a family counts as near
VIDEO = re.compile("3D|Video|Motion|SpatioTemporal")


class _Parts(NamedTuple):
    """Components of a pipeline class: name -> class, where its constructor says so; and its denoiser's class."""

    classes: dict[str, str]
    denoiser: str | None


def why_unknown(pipeline: type, families: Sequence[Family]) -> str:
    """What keeps a pipeline class from every family, with the nearest one; the end of a sentence.

    Example:
        >>> from diffusers import ZImageImg2ImgPipeline
        >>> from diffkit.families import FAMILIES
        >>> why_unknown(ZImageImg2ImgPipeline, FAMILIES).split("; ")[0]
        'it has the denoiser of ZImagePipeline, but its loop also takes image, strength'
    """
    nearest, own = nearest_family(pipeline, families), _parts(pipeline)
    if own.denoiser is None:
        return "its class names neither a unet nor a transformer as its denoiser"
    if VIDEO.search(own.denoiser):
        return f"its denoiser is a {own.denoiser}, of videos, and only images are made here"
    if nearest is None:
        return f"its denoiser is a {own.denoiser}, which none of them has, and none has such components"
    theirs = _parts(stock_class(nearest))
    if own.denoiser != theirs.denoiser:
        return (
            f"its denoiser is a {own.denoiser}; the nearest family is {nearest.name} ({nearest.pipeline}), whose "
            f"denoiser is a {theirs.denoiser}"
        )
    if "vae" not in own.classes:
        return f"it has the denoiser of {nearest.pipeline}, but no autoencoder"
    more = [name for name in keywords_of(pipeline) if name not in keywords_of(stock_class(nearest))]
    differs = f"its loop also takes {', '.join(more[:3])}" if more else "its loop is another"
    way = f"; for images from text alone use {nearest.pipeline}.from_pipe(pipe), with dtype= unless all is float32"
    return f"it has the denoiser of {nearest.pipeline}, but {differs}{way if _refines(pipeline, nearest) else ''}"


def _refines(pipeline: type, family: Family) -> bool:
    """Whether diffusers knows a pipeline class as the one that refines images of a family's models."""
    from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    return any(
        kind is pipeline
        and key in AUTO_TEXT2IMAGE_PIPELINES_MAPPING
        and AUTO_TEXT2IMAGE_PIPELINES_MAPPING[key] is stock_class(family)
        for key, kind in AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.items()
    )


def nearest_family(pipeline: type, families: Sequence[Family]) -> Family | None:
    """The family that a pipeline class is most like; None where none is near.

    The same denoiser counts most, then a name that begins as the family's does, then how many components are the same,
    by name and by class.

    Example:
        >>> from diffusers import AudioLDM2Pipeline, LuminaPipeline, SanaSprintPipeline
        >>> from diffkit.families import FAMILIES
        >>> near = [nearest_family(kind, FAMILIES) for kind in (LuminaPipeline, SanaSprintPipeline, AudioLDM2Pipeline)]
        >>> [family and family.name for family in near]
        ['Lumina-Image 2.0', 'Sana', None]
    """
    own = _parts(pipeline)

    def likeness(family: Family) -> tuple[bool, int, float]:
        theirs = _parts(stock_class(family))
        stem = re.sub(r"\d*Pipeline$", "", family.pipeline)
        shares = (
            _shared(set(own.classes), set(theirs.classes)),
            _shared(set(own.classes.items()), set(theirs.classes.items())),
        )
        near = own.denoiser is not None and all(share >= least for share, least in zip(shares, NEAR, strict=True))
        return (
            own.denoiser is not None and own.denoiser == theirs.denoiser,
            len(stem) if pipeline.__name__.startswith(stem) else 0,
            sum(shares) if near else 0.0,
        )

    best = max(families, key=likeness)
    return best if any(likeness(best)) else None


def _shared(first: set[Any], second: set[Any]) -> float:
    """Share of what either has that both have, in [0, 1]."""
    return len(first & second) / max(len(first | second), 1)


def _parts(pipeline: type) -> _Parts:
    """The components that a pipeline class's constructor takes; settings such as truth values are none."""
    parameters = inspect.signature(pipeline).parameters
    classes = {
        name: _class_name(parameter.annotation)
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and parameter.annotation is not bool
    }
    return _Parts(classes, classes.get("unet") or classes.get("transformer"))


def _class_name(annotation: Any) -> str:
    """The class that an annotation names; the first of several."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.split(r"\s*[|,\[\]]\s*", text)[0].rsplit(".", 1)[-1].strip("'\"")
