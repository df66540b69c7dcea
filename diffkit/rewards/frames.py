"""A reward of videos made of one of images: the mean of its scores of the frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.base import EstimateReward, Reward, RewardLike, score_checked

__all__ = ["FrameReward", "frame_reward", "is_same", "scores_videos"]


def scores_videos(reward: Reward) -> bool:
    """Whether a reward is given whole videos (B, frames, 3, H, W), because it says ``scores_videos = True``."""
    return bool(getattr(reward, "scores_videos", False))


class FrameReward:
    """Mean of an image reward's scores over the frames of a video, or over every k-th of them from the first on.

    A frame that cannot be scored makes a video that cannot be scored: a mean of what is left would favour broken
    videos. :func:`frame_reward` makes one.

    Attributes:
        reward: what scores a frame.
        every: 1 scores all frames, k frames 0, k, 2k and so on.
        flops_per_image: None; a search counts those of a video by trying.
    """

    scores_videos = True
    flops_per_image: float | None = None

    def __init__(self, reward: Reward, every: int = 1) -> None:
        self.reward, self.every = reward, every
        self.name = f"{reward.name}, mean of {'all frames' if every == 1 else f'every {every} frames'}"
        self.higher_is_better, self.range = reward.higher_is_better, reward.range

    @property
    def reads_prompts(self) -> bool:
        """Whether the image reward does."""
        return bool(getattr(self.reward, "reads_prompts", False))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of videos (B, frames, 3, H, W) float in [0, 1]; NaN where a frame cannot be scored."""
        return self._means(images, prompts, None)

    def _means(self, videos: Tensor, prompts: Sequence[str], log_snr: float | None) -> Tensor:
        frames = [video[:: self.every] for video in videos]
        return torch.stack(
            [
                score_checked(self.reward, shown, [prompt] * len(shown), log_snr).values.mean()
                for shown, prompt in zip(frames, prompts, strict=True)
            ]
        )


class _EstimateFrameReward(FrameReward):
    """Of an image reward that knows noise levels."""

    def score_estimates(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """Scores (B,) of the frames of estimates; see :class:`diffkit.rewards.base.EstimateReward`."""
        return self._means(images, prompts, log_snr)


def frame_reward(reward: RewardLike, *, every: int = 1) -> FrameReward:
    """A reward of videos: the mean over their frames of a reward of images.

    Args:
        reward: of images, by name or as it is.
        every: score every k-th frame only, from the first on: cheaper, and blind to what comes between.

    Raises:
        InputError: no such reward, it scores videos itself, or ``every`` is no whole number of at least 1.

    Example:
        >>> def brightness(images, prompts):
        ...     return images.mean((1, 2, 3))
        >>> reward, video = frame_reward(brightness, every=2), torch.zeros(1, 4, 3, 8, 8)
        >>> video[:, 0] = 1.0
        >>> reward.name, reward.score(video, ["a dog"])
        ('brightness, mean of every 2 frames', tensor([0.5000]))
    """
    loaded = load_reward(reward)
    if scores_videos(loaded):
        raise InputError(f"The reward {loaded.name!r} scores videos already; give it as it is.")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InputError(f"every must be a whole number of at least 1, got {every!r}.")
    kind: Callable[[Reward, int], FrameReward] = (
        _EstimateFrameReward if isinstance(loaded, EstimateReward) else FrameReward
    )
    return kind(loaded, every)


def is_same(reward: Reward, other: Reward) -> bool:
    """Whether two rewards are one, or score frames by one and the same."""
    if isinstance(reward, FrameReward) and isinstance(other, FrameReward):
        return reward.reward is other.reward and reward.every == other.every
    return reward is other
