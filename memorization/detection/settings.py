"""Everything that changes the result of a detection, checked before anything is computed. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, cast

from diffkit.errors import InputError, unknown_name
from memorization.detection import detectors as registry

if TYPE_CHECKING:
    from memorization.detection.result import SettingsValues

__all__ = ["DetectSettings"]


@dataclass(frozen=True)
class DetectSettings:
    """Settings of ``diffkit audit detect``.

    Attributes:
        detectors: names, with options where wanted (``noise_magnitude:steps=1``), in the order of the table.
        seeds: initial noises for each caption; its score is the mean over them.
        num_inference_steps: of the scored generation; ``guidance_scale`` likewise.
        micro_batch: rows through the denoiser at once; ``auto`` halves it when memory runs out.
        seed: everything random follows from it.
        threshold: flags captions above it; None = from the controls. Only with a single detector.
        fpr: share of the controls that the threshold may flag.

    Raises:
        InputError: a value is out of its range, or an unknown detector.

    Example:
        >>> DetectSettings(detectors=("noise_magnitude:steps=1",), seeds=2).num_inference_steps
        20
    """

    detectors: tuple[str, ...] = ("seed_agreement", "noise_magnitude", "anisotropy")
    seeds: int = 4
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    micro_batch: int | Literal["auto"] = 16
    seed: int = 0
    threshold: float | None = None
    fpr: float = 0.01

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.detectors or len(set(self.detectors)) != len(self.detectors):
            raise InputError(f"Expected one or more detectors, each once, got {','.join(self.detectors)!r}.")
        for spec in self.detectors:
            name = spec.split(":")[0]
            if name not in registry:
                raise unknown_name("detector", name, registry.names())
        if self.threshold is not None and len(self.detectors) > 1:
            raise InputError("Detectors have scales of their own: give --threshold with a single one of them.")
        if not 0 <= self.fpr < 1:
            raise InputError(f"Expected a share of false alarms from 0 to below 1, got {self.fpr}.")
        for name in ("seeds", "num_inference_steps", "micro_batch"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        if not 0 <= self.guidance_scale < math.inf:
            raise InputError(f"Expected a guidance scale of at least 0, got {self.guidance_scale}.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"Expected a finite threshold, got {self.threshold}.")

    def to_json(self) -> SettingsValues:
        """The settings as JSON values."""
        return cast("SettingsValues", asdict(self))
