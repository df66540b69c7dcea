"""The lab's rewards: a tiny model of ImageReward's architecture that judges scenes, those of three by their clauses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import InputError
from diffkit.lab import assets
from diffkit.lab.trio import clauses, parse_trio
from diffkit.rewards.cross_attention import CrossAttentionReward, tokenize
from diffkit.rewards.token_pruning import TokenPruning, name_options, prune_tokens


class LabReward:
    """How much of a scene's caption an image shows: about 0 to 1, higher is better.

    Args:
        folder: where the weights lie; the shipped ones by default.
        token_pruning: which patches the image encoder drops on the way, see :mod:`diffkit.rewards.token_pruning`.
    """

    name = "lab"
    higher_is_better = True
    range = (0.0, 1.0)
    reads_prompts = True

    def __init__(self, folder: Path | None = None, *, token_pruning: TokenPruning | str | None = None) -> None:
        self.model, self.tokenizer = CrossAttentionReward.from_pretrained(folder or assets.reward_path())
        self.name = ":".join([type(self).name, *name_options(prune_tokens(self.model, token_pruning))])
        self.input_size: int = self.model.vision.config.image_size
        self.flops_per_image: float | None = self._count_flops()

    @property
    def module(self) -> nn.Module:
        """The network; a copy of it can be trained in its place, see :meth:`differentiable`."""
        return self.model

    def _count_flops(self) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.differentiable(torch.zeros(1, 3, self.input_size, self.input_size), [""])
        return float(counter.get_total_flops())

    def differentiable(
        self, images: Tensor, prompts: Sequence[str], module: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Scores (B,) with gradient of images (B, 3, H, W) in [0, 1], by ``module`` if one is given.

        Raises:
            InputError: a caption names three things.
        """
        device = self.model.head.weight.device
        ids, mask = self._tokens(prompts)
        return (module or self.model)(images.to(device).float(), ids.to(device), mask.to(device))

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, L), as the network takes them."""
        for prompt in prompts:
            if parse_trio(prompt) is not None:
                raise InputError(f"The reward {self.name!r} reads scenes of two things, not {prompt!r}; for those of "
                                 f"three take lab-trio or lab-trio-noise-aware.")  # fmt: skip
        return tokenize(self.tokenizer, list(prompts))

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W) in [0, 1] for their prompts.

        Raises:
            InputError: when there are not as many prompts as images.
        """
        if len(images) != len(prompts):
            raise InputError(f"expected one prompt per image, got {len(images)} images and {len(prompts)} prompts")
        return self.differentiable(images, prompts).float()


class LabTrioReward(LabReward):
    """The same of scenes of three things: the mean of the scores of a caption's two clauses; the image is encoded once.

    A caption of another form counts as both clauses.
    """

    name = "lab-trio"

    def _tokens(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, 2, L): both clauses of each."""
        ids, mask = tokenize(self.tokenizer, [clause for prompt in prompts for clause in clauses(prompt)])
        return ids.unflatten(0, (len(prompts), 2)), mask.unflatten(0, (len(prompts), 2))


def load(*, token_pruning: TokenPruning | str | None = None) -> LabReward:
    """The shipped reward ``lab``."""
    return LabReward(token_pruning=token_pruning)


def load_trio(*, token_pruning: TokenPruning | str | None = None) -> LabTrioReward:
    """The shipped reward ``lab-trio``."""
    return LabTrioReward(token_pruning=token_pruning)
