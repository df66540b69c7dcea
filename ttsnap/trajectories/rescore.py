"""Score recorded estimates by another reward, for example one that was distilled from these trajectories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from diffkit.rewards.base import Reward, score_checked
from ttsnap.reward_tensor import RewardTensor
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["rescore"]

IMAGES_AT_ONCE = 64


@torch.no_grad()
def rescore(
    trajectories: Trajectories, base: str, reward: Reward, *, advance: Callable[[int], object] = int
) -> RewardTensor:
    """Score every recorded preview at its noise level; finals stay those of the recorded reward.

    Args:
        trajectories: trajectories with previews.
        base: name of the recorded reward whose finals count.
        reward: scores the previews; NaN where it cannot, or where the estimate was not finite.
        advance: called with the number of prompts newly done.

    Returns:
        looks (P, N, T), higher is better, NaN at steps that were not recorded; under the name of ``reward``. Recorded
        lookaheads stay those of ``base`` too: they were scored plainly, like finals.

    Raises:
        InputError: no such reward, or no previews.
    """
    recorded = trajectories.reward_tensor(base)
    looks = np.full_like(recorded.looks, np.nan)
    sign = 1.0 if reward.higher_is_better else -1.0
    for row, trajectory in enumerate(trajectories):
        texts = [trajectory.prompt] * trajectories.candidates
        for step, level in zip(trajectories.steps, trajectories.log_snrs, strict=True):
            images = trajectory.estimates(step)
            parts = [
                score_checked(reward, part, texts[: len(part)], log_snr=level).values
                for part in images.split(IMAGES_AT_ONCE)
            ]
            looks[row, :, step] = sign * torch.cat(parts).double().numpy()
        looks[row][:, list(trajectory.steps)] = np.where(
            trajectory.unseen.numpy(), np.nan, looks[row][:, list(trajectory.steps)]
        )
        advance(1)
    prices = None if recorded.prices is None else replace(recorded.prices, verify=reward.flops_per_image)
    return replace(recorded, looks=looks, name=reward.name, prices=prices)
