"""What stock pipelines do to decoded images: the safety checker blackens some, SDXL's watermark changes all a little.

Neither belongs to what a model has learned, so both are off wherever images are measured or trained on. Where images
are handed out the checker's verdict counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Pipeline

__all__ = ["FLAGGED", "check_safety_checker", "flagged_images", "has_safety_checker", "unfiltered"]

FILTERS = ("safety_checker", "watermark")
FLAGGED = "flagged by the safety checker"


@contextmanager
def unfiltered(pipe: Pipeline) -> Iterator[None]:
    """The pipeline's images as its autoencoder decodes them; its safety checker and watermark are put back afterwards.

    Example:
        >>> from types import SimpleNamespace
        >>> pipe = SimpleNamespace(safety_checker="checker")
        >>> with unfiltered(pipe):
        ...     print(pipe.safety_checker)
        None
        >>> pipe.safety_checker
        'checker'
    """
    attributes = pipe.__dict__  # by assignment diffusers would strike the component from the configuration, for good
    before = {name: attributes[name] for name in FILTERS if name in attributes}
    attributes.update(dict.fromkeys(before))
    try:
        yield
    finally:
        attributes.update(before)


def has_safety_checker(pipe: Pipeline) -> bool:
    """Whether the pipeline would check its decoded images."""
    return getattr(pipe, "safety_checker", None) is not None


def check_safety_checker(pipe: Pipeline) -> None:
    """Refuse a safety checker that cannot see.

    Raises:
        InputError: there is one, but no feature extractor.
    """
    if has_safety_checker(pipe) and getattr(pipe, "feature_extractor", None) is None:
        raise InputError(
            f"This {type(pipe).__name__} has a safety checker but no feature extractor to prepare its images; set "
            f"pipe.feature_extractor, or pipe.safety_checker = None."
        )


@torch.no_grad()
def flagged_images(pipe: Pipeline, images: Tensor, dtype: torch.dtype) -> list[bool]:
    """Which images the pipeline's safety checker flags; none where it has no checker. The images are left as they are.

    Args:
        images: (B, 3, H, W) in [0, 1], finite.
        dtype: of the pipeline's prompt embeddings, in which the checker gets its input.
    """
    if not has_safety_checker(pipe) or not len(images):
        return [False] * len(images)
    pixels = pipe.image_processor.pt_to_numpy(images)  # a copy, which the checker may blacken
    with _without_warning():
        _, verdicts = pipe.run_safety_checker(pixels.copy(), pipe._execution_device, dtype)
    if verdicts is None or isinstance(verdicts, bool):  # of a function in the checker's place
        return [bool(verdicts)] * len(images)
    return [bool(verdict) for verdict in verdicts]


@contextmanager
def _without_warning() -> Iterator[None]:
    """Without the checker's warning that a black image will be returned: another candidate may be taken."""
    logger = logging.getLogger("diffusers.pipelines.stable_diffusion.safety_checker")
    logger.addFilter(_is_other)
    try:
        yield
    finally:
        logger.removeFilter(_is_other)


def _is_other(record: logging.LogRecord) -> bool:
    return "Potential NSFW content" not in record.getMessage()
