"""Settings and prompts of a quality report. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffkit.errors import InputError
from diffkit.prompts import read_prompts


@dataclass(frozen=True)
class QualitySettings:
    """Settings of a quality report; both models get the same.

    Attributes:
        seeds_per_prompt: images from each prompt; diversity and relative drift need at least 2.
        num_inference_steps: of every generation; ``guidance_scale`` likewise.
        bins: parts of the timestep range in which the validation loss is taken; ``draws`` of noise in each.
        micro_batch: images generated at once.
        seed: everything random follows from it.

    Raises:
        InputError: a value is out of its range.
    """

    seeds_per_prompt: int = 4
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    bins: int = 5
    draws: int = 2
    micro_batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name in ("seeds_per_prompt", "num_inference_steps", "bins", "draws", "micro_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        if self.guidance_scale < 0:
            raise InputError(f"Expected a guidance scale of at least 0, got {self.guidance_scale}.")


def read_quality_prompts(source: str | Path, limit: int = 16, *, seed: int = 41) -> list[str]:
    """Different prompts from ``lab:held-out`` (scenes no lab model was trained on) or of another source.

    Raises:
        InputError: as :func:`diffkit.prompts.read_prompts`, which reads it.
    """
    if source == "lab:held-out":
        from diffkit.lab.world import held_out_scenes

        return [scene.caption for scene in held_out_scenes(limit, seed=seed)]
    return list(dict.fromkeys(read_prompts(source)))[:limit]
