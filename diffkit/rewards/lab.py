"""The lab's reward: a tiny model of ImageReward's architecture that judges scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import InputError
from diffkit.lab import assets
from diffkit.rewards.cross_attention import CrossAttentionReward, score, tokenize


class LabReward:
    """How much of a scene's caption an image shows: about 0 to 1, higher is better.

    Args:
        folder: where the weights lie; the shipped ones by default.
    """

    name = "lab"
    higher_is_better = True
    range = (0.0, 1.0)

    def __init__(self, folder: Path | None = None) -> None:
        self.model, self.tokenizer = CrossAttentionReward.from_pretrained(folder or assets.reward_path())
        self.flops_per_image: float | None = self._count_flops()

    def _count_flops(self) -> float:
        ids, mask = tokenize(self.tokenizer, [""])
        side = self.model.vision.config.image_size
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(torch.zeros(1, 3, side, side), ids, mask)
        return float(counter.get_total_flops())

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their prompts.

        Raises:
            InputError: when there are not as many prompts as images.
        """
        if len(images) != len(prompts):
            raise InputError(f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts")
        return score(self.model, self.tokenizer, images, list(prompts))


def load() -> LabReward:
    """The shipped reward."""
    return LabReward()
