"""Detection of memorized captions: the registry of detectors.

A detector scores captions alone. It needs no training image, so it also scores suspects whose image is lost; it does
not tell which image would be generated. Every detector gives one score to a (caption, seed) pair, higher = more likely
memorized; a caption's score is the mean over its seeds. Some detectors need only an ordinary generation; they can also
score one that is made anyway (:class:`memorization.detection.base.RecordingDetector`), at no cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from diffkit.errors import InputError
from diffkit.registry import Registry
from memorization.detection.base import Detector

__all__ = ["detectors", "make_detector"]


_HERE = "memorization.detection"

detectors: Registry[Callable[..., Detector]] = Registry(
    "detector",
    "diffkit.detectors",
    builtins={
        "noise_magnitude": f"{_HERE}.noise_magnitude:NoiseMagnitude",
        "anisotropy": f"{_HERE}.anisotropy:Anisotropy",
        "attention_entropy": f"{_HERE}.cross_attention:AttentionEntropy",
        "attention_entropy_one_step": f"{_HERE}.cross_attention:OneStepAttentionEntropy",
        "sharpness": f"{_HERE}.sharpness:Sharpness",
        "bright_ending": f"{_HERE}.bright_ending:BrightEnding",
        "curvature_difference": f"{_HERE}.curvature_difference:CurvatureDifference",
        "seed_agreement": f"{_HERE}.seed_agreement:SeedAgreement",
    },
)


def make_detector(spec: str) -> Detector:
    """A detector by its registered name, with options where wanted: ``noise_magnitude:steps=1``.

    Args:
        spec: the name, then any number of ``:option=number``.

    Raises:
        InputError: an unknown name, or an option that the detector does not have.
    """
    name, *parts = spec.split(":")
    factory = detectors.get(name)
    options = dict(_option(spec, part) for part in parts)
    accepted = list(inspect.signature(factory).parameters)
    wrong = [key for key in options if key not in accepted]
    if wrong:
        listing = ", ".join(accepted) if accepted else "none"
        raise InputError(f"The detector {name!r} has no option {wrong[0]!r}. Its options: {listing}.")
    return factory(**options)


def _option(spec: str, part: str) -> tuple[str, int | float]:
    key, equals, text = part.partition("=")
    try:
        number = float(text)
    except ValueError:
        equals = ""
    if not key or not equals:
        raise InputError(f"Expected a detector such as noise_magnitude:steps=1, got {spec!r}.")
    return key, int(number) if number.is_integer() and "." not in text else number
