"""Everything that changes the result of an audit, checked before anything is computed. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

from diffkit.errors import InputError
from memorization.auditing.controls import Correction
from memorization.items import EditName

if TYPE_CHECKING:
    from memorization.auditing.result import SettingsValues

AUTO = ("auto",)  # detectors: the first default that fits the model's family


class Triage(NamedTuple):
    """Which share of the suspects is attacked, and the detector that ranks their captions."""

    detector: str
    share: float

    @classmethod
    def read(cls, text: str) -> Triage:
        """The triage that ``DETECTOR:SHARE`` stands for; the detector may have options of its own.

        Raises:
            InputError: no share in (0, 1].

        Example:
            >>> Triage.read("noise_magnitude:steps=1:0.2")
            Triage(detector='noise_magnitude:steps=1', share=0.2)
        """
        detector, _, share = text.rpartition(":")
        try:
            number = float(share)
        except ValueError:
            number = math.nan
        if not detector or not 0 < number <= 1:
            raise InputError(f"Expected a triage such as noise_magnitude:0.2, got {text!r}.")
        return cls(detector, number)


@dataclass(frozen=True)
class AuditSettings:
    """Settings of an audit.

    Attributes:
        attacks: registered attacks, the rungs of the ladder; each is compared with the controls on its own.
        budgets: attack steps at which similarity is measured; rising, from 0.
        starts: where the attack begins: "prompt", "other", "gaussian"; the best start counts.
        generations: images from each caption; the median similarity over them counts.
        attack_generations: images from each trigger at each budget; the median counts.
        num_inference_steps: of every generation; ``guidance_scale`` likewise.
        learning_rates: of the attacks that take one; the best counts, for suspects and controls alike; None = each
            attack's own.
        draws: pairs of noise and timestep per image and step.
        pooled: leave pooled embeddings (SDXL, SD3, FLUX) as the starts have them, or attack them too.
        size: (height, width) in pixels of every image; None = the model's own.
        alpha: level of the pre-set budget and of the corrected p-values.
        attack_all: attack at every budget, also where the verdict is certain before.
        triage: ``DETECTOR:SHARE``: attack only this share of the suspects, those whose captions a registered detector
            scores highest; the verdict on the others that their captions do not replicate is "not attacked".
        detectors: registered detectors that score the captions alone; ``("auto",)``: one that fits the family.
        edits: families of edited controls, attacked like the suspects and reported apart from the controls.
        masks: compute for each template which pixels are memorized, for the report.
        threshold: of the copy detector; None = its own, raised by the calibration where needed.
        items_at_once: suspects or controls in one constant-size batch; results are kept after each batch.
        micro_batch: images generated at once; ``auto`` begins with many and halves them when memory runs out.
        other_captions: unrelated captions for the "other" start; None = the built-in ones.

    Raises:
        InputError: a value is out of its range.

    Example:
        >>> from memorization import AuditSettings
        >>> AuditSettings(attacks=("words", "dori"), budgets=(0, 10, 25)).alpha
        0.05
    """

    attacks: tuple[str, ...] = ("dori",)
    budgets: tuple[int, ...] = (0, 1, 10, 25, 50)
    starts: tuple[str, ...] = ("other", "gaussian")
    generations: int = 10
    attack_generations: int = 3
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    learning_rates: tuple[float, ...] | None = None
    draws: int = 8
    pooled: Literal["fixed", "attacked"] = "fixed"
    size: tuple[int, int] | None = None
    alpha: float = 0.05
    correction: Correction = "bh"
    copies: str = "tiled"
    detectors: tuple[str, ...] = ("noise_magnitude",)
    edits: tuple[EditName, ...] = ()
    masks: bool = False
    threshold: float | None = None
    seed: int = 0
    items_at_once: int = 4
    micro_batch: int | Literal["auto"] = 16
    other_captions: tuple[str, ...] | None = None
    attack_all: bool = False
    triage: str | None = None

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        rising = all(low < high for low, high in zip(self.budgets, self.budgets[1:], strict=False))
        if len(self.budgets) < 2 or self.budgets[0] != 0 or not rising:
            raise InputError(f"Expected rising attack budgets from 0, such as 0,1,10,25,50, got {_text(self.budgets)}.")
        names = ("prompt", "other", "gaussian")
        if not self.starts or len(set(self.starts)) != len(self.starts) or not set(self.starts) <= set(names):
            raise InputError(f"Expected starts among {', '.join(names)}, each once, got {_text(self.starts)!r}.")
        _refuse_repeats("attacks", self.attacks, at_least=1)
        _refuse_repeats("detectors", self.detectors, at_least=0)
        if len(set(self.edits)) != len(self.edits) or not set(self.edits) <= set(get_args(EditName)):
            raise InputError(
                f"Expected edited controls among {', '.join(get_args(EditName))}, each once, got {_text(self.edits)!r}."
            )
        if self.pooled not in ("fixed", "attacked"):
            raise InputError(f"Expected pooled embeddings fixed or attacked, got {self.pooled!r}.")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"Expected a size in pixels such as 512x512, got {_text(self.size)}.")
        if not 0 < self.alpha < 1:
            raise InputError(f"Expected alpha between 0 and 1, got {self.alpha}.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise InputError(f"Expected a threshold between -1 and 1, got {self.threshold}.")
        counts = ("generations", "attack_generations", "num_inference_steps", "draws", "items_at_once", "micro_batch")
        for name in counts:
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        if self.triage is not None:
            Triage.read(self.triage)
        rates = (1.0,) if self.learning_rates is None else self.learning_rates
        _refuse_repeats("learning rates", rates, at_least=1)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.guidance_scale < math.inf:
            raise InputError("Expected positive learning rates and a guidance scale of at least 0.")

    def to_json(self) -> SettingsValues:
        """The settings as JSON values; those of later versions only where they are not the default."""
        values = asdict(self)
        later = {"attack_all": False, "triage": None}
        return cast("SettingsValues", {k: v for k, v in values.items() if k not in later or v != later[k]})


def _refuse_repeats(what: str, values: Sequence[object], *, at_least: int) -> None:
    if len(values) < at_least or len(set(values)) != len(values):
        raise InputError(f"Expected {what}, each once, got {_text(values)!r}.")


def _text(values: Sequence[object]) -> str:
    return ",".join(str(value) for value in values)
