"""Everything that changes the figures of a locality study, checked before anything runs; imports nothing heavy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from diffkit.errors import InputError


@dataclass(frozen=True)
class LocalitySettings:
    """Settings of a locality study.

    Attributes:
        starts: Gaussian starts an image; the same for every image.
        attack_steps: of the attack from each start; ``learning_rate`` and ``draws`` as in the audit.
        group: embeddings in every group that is compared; cut to the number of starts and of memorized images.
        lines: pairs of triggers per image that are joined by straight lines.
        shares: points on each line, as shares of the way.
        generations: images from each embedding; their median similarity is used.
        methods: whose selected weights are compared: "nemo", "wanda".
        theta: NeMo's, in deviations, one for all; ``sparsity``: Wanda's share of columns.
        noises: initial noises over which activation discrepancies are averaged.
        patterns: layers whose activations are compared; None = value projections of the text and the second
            feed-forward linears, as the family names them.
        reached: share of starts that must succeed for an image to count as memorized here.
        threshold: of the copy detector; None = calibrated as in the audit.
        micro_batch: images generated, and triggers searched, at once.
        ordinary: captions of nothing memorized; None = the built-in ones.

    Raises:
        InputError: a value is out of its range.
    """

    starts: int = 100
    attack_steps: int = 50
    learning_rate: float = 0.1
    draws: int = 8
    group: int = 8
    lines: int = 4
    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    generations: int = 3
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    methods: tuple[str, ...] = ("nemo", "wanda")
    theta: float = 3.0
    sparsity: float = 0.01
    noises: int = 2
    patterns: tuple[str, ...] | None = None
    reached: float = 0.5
    copies: str = "tiled"
    threshold: float | None = None
    seed: int = 0
    micro_batch: int = 16
    ordinary: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("attack_steps", "draws", "lines", "generations", "num_inference_steps", "noises", "micro_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name.replace('_', ' ')} of at least 1, got {getattr(self, name)}.")
        for name in ("starts", "group"):
            if getattr(self, name) < 2:
                raise InputError(f"Expected {name} of at least 2, since pairs are compared; got {getattr(self, name)}.")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise InputError(f"Expected points strictly between 0 and 1 on a line, got {list(self.shares)}.")
        if not 0 < self.reached <= 1:
            raise InputError(f"Expected a share of starts in (0, 1] for 'reached', got {self.reached}.")
        if self.learning_rate <= 0 or self.guidance_scale < 0 or self.theta <= 0 or not 0 < self.sparsity <= 1:
            raise InputError("Expected a positive learning rate and theta, guidance from 0, a sparsity in (0, 1].")
        unknown = [name for name in self.methods if name not in ("nemo", "wanda")]
        if unknown or len(set(self.methods)) != len(self.methods):
            raise InputError(f"Expected methods among nemo and wanda, each once, got {', '.join(self.methods)!r}.")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)
