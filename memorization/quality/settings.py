"""What a quality report is made with, what a mitigation may cost, and the prompts. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.errors import InputError
from diffkit.suspects import read_suspects


@dataclass(frozen=True)
class QualitySettings:
    """Settings of a quality report; both models get the same.

    Attributes:
        seeds_per_prompt: images from each prompt; diversity and the drift's yardstick need at least 2.
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
        """Refuse what cannot be meant."""
        for name in ("seeds_per_prompt", "num_inference_steps", "bins", "draws", "micro_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        if self.guidance_scale < 0:
            raise InputError(f"Expected a guidance scale of at least 0, got {self.guidance_scale}.")


@dataclass(frozen=True)
class QualityBudget:
    """The most that a mitigation may cost; None = no limit. Judged by the means of :func:`compare`.

    Attributes:
        relative_drift: of the images, 1 = as different as another seed's.
        alignment_loss: fall of any reward, in its own unit.
        loss_rise: rise of the validation loss over its value before, as a share.
        unconditional: squared distance of the empty prompt's predictions over their mean square.
    """

    relative_drift: float | None = None
    alignment_loss: float | None = None
    loss_rise: float | None = None
    unconditional: float | None = None

    def exceeded(self, report: dict[str, Any]) -> list[str]:
        """What is over budget, one phrase each; unknown counts as over."""
        whole = report["loss"]["all"]
        rise = whole["change"]["mean"] / whole["before"]["mean"] if whole["change"]["mean"] is not None else None
        spent: list[tuple[str, float | None, float | None]] = [
            ("relative drift", report["drift"]["relative"]["mean"], self.relative_drift),
            ("rise of the validation loss", rise, self.loss_rise),
            ("drift of the unconditional branch", report["unconditional"]["all"]["mean"], self.unconditional),
        ]
        for name, row in report["alignment"].items():
            change = row["change"]["mean"]
            fall = None if change is None else -change if row["higher_is_better"] else change
            spent.append((f"loss of {name}", fall, self.alignment_loss))
        return [
            f"{name} is unknown" if value is None else f"{name} {value:.3g} is above {limit:.3g}"
            for name, value, limit in spent
            if limit is not None and (value is None or value > limit)
        ]


def read_quality_prompts(source: str | Path, limit: int = 16, *, seed: int = 41) -> list[str]:
    """Different prompts from ``lab:held-out`` (scenes no lab model was trained on) or what ``read_suspects`` reads.

    Raises:
        InputError: nothing usable in the source.
    """
    if source == "lab:held-out":
        from diffkit.lab.world import held_out_scenes

        return [scene.caption for scene in held_out_scenes(limit, seed=seed)]
    suspects, _ = read_suspects(source)
    if not suspects:
        raise InputError(f"{source} has no prompt that can be read.")
    return list(dict.fromkeys(suspect.caption for suspect in suspects))[:limit]
