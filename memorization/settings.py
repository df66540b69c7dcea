"""Everything that changes the result of an audit, checked before anything is computed. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffkit.errors import InputError
from memorization.controls import Correction


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        budgets: attack steps at which similarity is measured; rising, from 0.
        starts: where the attack begins: "prompt", "other", "gaussian"; the best start counts, for all alike.
        generations: images from each caption; the median similarity over them counts.
        attack_generations: images from each trigger at each budget; the median counts.
        num_inference_steps: of every generation; ``guidance_scale`` likewise.
        learning_rate: of the attack's Adam; ``draws``: pairs of noise and timestep per image and step.
        alpha: level of the pre-set budget and of the corrected p-values.
        threshold: of the copy detector; None = its own, raised by the calibration where needed.
        items_at_once: suspects or controls in one constant-size batch; results are kept after each batch.
        micro_batch: images generated at once.
        other_captions: unrelated captions for the "other" start; None = the built-in ones.

    Raises:
        InputError: a value is out of its range.
    """

    attack: str = "dori"
    budgets: tuple[int, ...] = (0, 1, 10, 25, 50)
    starts: tuple[str, ...] = ("other", "gaussian")
    generations: int = 10
    attack_generations: int = 3
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    learning_rate: float = 0.1
    draws: int = 8
    alpha: float = 0.05
    correction: Correction = "bh"
    copies: str = "tiled"
    detector: str = "noise_magnitude"
    threshold: float | None = None
    seed: int = 0
    items_at_once: int = 4
    micro_batch: int = 16
    other_captions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        rising = all(low < high for low, high in zip(self.budgets, self.budgets[1:], strict=False))
        if len(self.budgets) < 2 or self.budgets[0] != 0 or not rising:
            raise InputError(f"Expected rising attack budgets from 0, such as 0,1,10,25,50, got {_text(self.budgets)}.")
        known = ("prompt", "other", "gaussian")
        if not self.starts or len(set(self.starts)) != len(self.starts) or not set(self.starts) <= set(known):
            raise InputError(f"Expected starts among {', '.join(known)}, each once, got {_text(self.starts)!r}.")
        if not 0 < self.alpha < 1:
            raise InputError(f"Expected alpha between 0 and 1, got {self.alpha}.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise InputError(f"Expected a threshold between -1 and 1, got {self.threshold}.")
        counts = ("generations", "attack_generations", "num_inference_steps", "draws", "items_at_once", "micro_batch")
        for name in counts:
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        if self.learning_rate <= 0 or self.guidance_scale < 0:
            raise InputError("Expected a positive learning rate and a guidance scale of at least 0.")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def _text(values: Sequence[object]) -> str:
    return ",".join(str(value) for value in values)
