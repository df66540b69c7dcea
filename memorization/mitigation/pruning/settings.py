"""Settings of pruning, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from diffkit.errors import InputError

__all__ = ["Allocation", "Objective", "PruneSettings", "Saliency", "Structure"]

Saliency = Literal["magnitude", "wanda", "distortion", "taylor"]
Allocation = Literal["uniform", "global", "module", "ecoflap", "tyr"]
Objective = Literal["loss", "forget", "dori"]
Structure = Literal["weights", "channels"]
SEARCHED = ("ecoflap", "tyr")


@dataclass(frozen=True)
class PruneSettings:
    """Settings of pruning.

    Attributes:
        saliency: how the weights of a layer are ordered, see the files of this package.
        allocation: how many weights each layer loses: the same share (``uniform``), those under one threshold over all
            layers (``global``) or over each module (``module``), by sensitivity (``ecoflap``), by search (``tyr``).
        sparsity: share of the prunable weights that is switched off.
        objective: what ``ecoflap`` and ``tyr`` keep low: the ``loss`` on ordinary data; that less the loss on the
            suspects' images (``forget``); or less what a short DoRI attack on them leaves (``dori``).
        forget: weight of what is subtracted.
        layers: patterns of the denoiser's linear layers and convolutions, or of its units (``*.head``, ``*.channel``,
            ``*.group``) where ``structure`` is ``channels``; none = those of its blocks.
        damping: of ``taylor``, see there.
        retention: ordinary data: lab:scenes, gallery:ordinary, images with captions, captions alone, or auto (the
            preset's); see :mod:`memorization.mitigation.adversarial.retention`.
        examples: images of these.
        draws: of noise for each image.
        batch: rows through the denoiser at once.
        band: ``ecoflap`` gives each layer a share of at most this much below or above the sparsity.
        perturbations: ``ecoflap``'s pairs of passes for each layer.
        epsilon: its step, relative to the root mean square of the layer's weights.
        grain: ``tyr``'s steps of a layer's share, falling; one search each.
        population: allocations of a generation.
        generations: of each search.
        attack_steps: of the DoRI attack in ``dori``.
        attack_images: of the suspects that it attacks.
        num_inference_steps: of ordinary images that the model draws itself.
        guidance_scale: of the same.
        seed: of all randomness.
        structure: single ``weights``, or whole heads, feed-forward channels and resnet groups (``channels``), which
            can be removed (:mod:`diffkit.mitigation.shrink`); see :mod:`.structured`.
    """

    saliency: str = "wanda"
    allocation: str = "uniform"
    sparsity: float = 0.3
    objective: str = "loss"
    forget: float = 1.0
    layers: tuple[str, ...] | None = None
    damping: float = 0.1
    retention: str = "auto"
    examples: int = 32
    draws: int = 2
    batch: int = 16
    band: float = 0.2
    perturbations: int = 4
    epsilon: float = 0.01
    grain: tuple[float, ...] = (0.1, 0.05, 0.025)
    population: int = 16
    generations: int = 10
    attack_steps: int = 10
    attack_images: int = 4
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    seed: int = 0
    structure: str = "weights"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of its range.
        """
        named = (
            ("saliency", Saliency),
            ("allocation", Allocation),
            ("objective", Objective),
            ("structure", Structure),
        )
        for name, choices in named:
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"Expected {name} {', '.join(get_args(choices))}, got {getattr(self, name)!r}.")
        if self.structure == "channels" and self.allocation in SEARCHED:
            raise InputError(f"structure=channels takes allocation uniform, global or module, got {self.allocation!r}.")
        if not 0 < self.sparsity < 1:
            raise InputError(f"Expected sparsity, a share of the weights, in (0, 1), got {self.sparsity}.")
        counts = ("examples", "draws", "batch", "perturbations", "generations", "attack_steps", "attack_images")
        for name in (*counts, "num_inference_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"Expected {name} of at least 1, got {getattr(self, name)}.")
        for name in ("damping", "epsilon", "band"):
            if not getattr(self, name) > 0:
                raise InputError(f"Expected a positive {name}, got {getattr(self, name)}.")
        if self.forget < 0:
            raise InputError(f"Expected forget, a weight, of 0 or more, got {self.forget}.")
        if self.population < 2:
            raise InputError(f"Expected a population of at least 2, got {self.population}.")
        falling = all(high > low for high, low in pairwise(self.grain))
        if not self.grain or not falling or not 0 < self.grain[-1] <= self.grain[0] <= 0.5:
            raise InputError(f"Expected falling steps grain in (0, 0.5], got {self.grain}.")

    @property
    def needs_data(self) -> bool:
        """Whether anything is measured on images."""
        return self.saliency in ("wanda", "taylor") or self.allocation in SEARCHED

    @property
    def needs_images(self) -> bool:
        """Whether anything is measured on the suspects' images."""
        return self.saliency == "taylor" or (self.allocation in SEARCHED and self.objective != "loss")

    @property
    def needs_gradient(self) -> bool:
        """Whether the gradient of the denoiser is taken."""
        return self.saliency == "taylor" or (self.allocation in SEARCHED and self.objective == "dori")
