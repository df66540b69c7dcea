"""Presets: settings that a family of models needs in place of the defaults, chosen with ``--preset``.

The models of the lab and the gallery know only the words of their own captions, and the lab's store their images more
strongly than published models, so some defaults do not suit them. ``auto`` takes the preset of the lab or the gallery
for their models, and ``none`` for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from diffkit.lab.assets import GALLERY as GALLERY_MODELS
from diffkit.lab.assets import MODELS as SHIPPED_MODELS

if TYPE_CHECKING:
    from diffkit.rewards.base import RewardLike

__all__ = ["GALLERY", "LAB", "NONE", "Preset", "PresetName", "choose_preset", "recorded_preset"]

PresetName = Literal["auto", "lab", "gallery", "none"]


@dataclass(frozen=True)
class Preset:
    """What replaces the defaults for a family of models; None or empty where the default stays.

    Attributes:
        name: "lab", "gallery" or "none".
        other_captions: gives the unrelated captions at which an audit's attacks start.
        ordinary_captions: gives up to n captions that the model has not memorized.
        retention: the data that adversarial fine-tuning keeps, by the name its ``retention`` setting takes.
        rewards: gives the rewards of a quality report, by the source of its prompts.
        methods: settings of mitigation methods, by method.
    """

    name: Literal["lab", "gallery", "none"]
    other_captions: Callable[[], tuple[str, ...]] | None = None
    ordinary_captions: Callable[[int], tuple[str, ...]] | None = None
    retention: str | None = None
    rewards: Callable[[str], list[RewardLike]] | None = None
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def choose_preset(name: PresetName, model: str) -> Preset:
    """The preset of that name; ``auto`` decides by the model's name, with or without ``@revision``."""
    if name == "auto":
        shipped = model.partition("@")[0]
        return GALLERY if shipped in GALLERY_MODELS else LAB if shipped in SHIPPED_MODELS else NONE
    return {"lab": LAB, "gallery": GALLERY, "none": NONE}[name]


def recorded_preset(record: Mapping[str, Any]) -> Preset:
    """The preset of a run by its run.json; runs of version 0.1.0 recorded none and used ``auto``."""
    return choose_preset(record["provenance"].get("preset", "auto"), str(record["config"]["model"]))


def _training_captions(n: int, seed: int) -> tuple[str, ...]:
    from diffkit.lab.world import training_scenes

    return tuple(scene.caption for scene in training_scenes(n, seed=seed))


def _ordinary_captions(n: int) -> tuple[str, ...]:
    from diffkit.lab.gallery.captions import ordinary_captions

    return tuple(ordinary_captions(n))


def _lab_rewards(prompts_from: str) -> list[RewardLike]:
    from diffkit.lab.measure import scene_correct

    return ["lab", *([scene_correct] if prompts_from == "lab:held-out" else [])]


ADVERSARIAL = {
    "updates": 500,
    "learning_rate": 2e-4,
    "adversarial_batch": 16,
    "retention_batch": 32,
    "adversarial_weight": 0.5,
    "search_batch": 8,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
}
"""Measured on the lab by scripts/measure_adversarial.py; the defaults are the usual ones for Stable Diffusion 1, not
measured."""
NONE = Preset("none")
LAB = Preset(
    "lab",
    other_captions=lambda: _training_captions(8, 2024),
    ordinary_captions=lambda n: _training_captions(n, 2025),
    retention="lab:scenes",
    rewards=_lab_rewards,
    methods={
        # Ordinary captions too give one layout on every seed there, so that the published criterion cannot detect a
        # memory; a fixed theta can, chosen by scripts/measure_mitigations.py.
        "nemo": {"theta": 2.25, "smallest_theta": 2.25, "check": False, "refine": False},
        # Memories are stronger than in Stable Diffusion 1.4; chosen by scripts/measure_mitigations.py.
        "wanda": {"sparsity": (0.05, 0.1, 0.15, 0.2, 0.3, 0.4)},
        "adversarial": ADVERSARIAL,
    },
)
GALLERY = Preset(
    "gallery",
    other_captions=lambda: _ordinary_captions(8),
    ordinary_captions=_ordinary_captions,
    retention="gallery:ordinary",
    methods={"adversarial": ADVERSARIAL},
)
