"""What differs in a search where the pipeline makes videos: rewards of their frames, and how videos are handed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Family, Pipeline
from diffkit.rewards.base import Reward
from diffkit.rewards.frames import frame_reward, scores_videos

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Videos", "check_parts", "fitting_reward", "handed_out", "videos_asked"]

Videos: TypeAlias = "list[list[Image]] | np.ndarray[Any, Any] | Tensor"


def fitting_reward(reward: Reward, family: Family) -> Reward:
    """A reward of what the family makes: of videos the mean over frames, where it is a reward of images.

    Raises:
        InputError: it scores videos, and the family makes images.
    """
    if family.makes_videos:
        return reward if scores_videos(reward) else frame_reward(reward)
    if scores_videos(reward):
        raise InputError(f"The reward {reward.name!r} scores videos, and {family.pipeline} makes images; give another.")
    return reward


def check_parts(family: Family, **parts: object) -> None:
    """Refuse the parts of a search that know images only.

    Raises:
        InputError: one is given, and the family makes videos.
    """
    given = [name for name, part in parts.items() if part is not None]
    if family.makes_videos and given:
        raise InputError(f"A search of videos takes no {given[0]}: it is made for images, and these have frames.")


def videos_asked(keywords: dict[str, object], winners: int) -> int:
    """How many winners: ``num_videos_per_prompt``, as pipelines of videos call it, is taken out of the keywords.

    Raises:
        InputError: it is no whole number, or ``num_images_per_prompt`` is another.
    """
    asked = keywords.pop("num_videos_per_prompt", None)
    if asked is None:
        return winners
    if isinstance(asked, bool) or not isinstance(asked, int) or winners not in (1, asked):
        raise InputError(
            f"num_videos_per_prompt must be a whole number, and num_images_per_prompt no other; {asked!r}."
        )
    return asked


def handed_out(pipe: Pipeline, videos: Sequence[Tensor], output_type: str) -> Videos:
    """Videos (frames, 3, H, W) in [0, 1] as the stock pipeline's ``frames``."""
    if output_type == "pt":
        return torch.stack(list(videos)).to(pipe._execution_device, pipe.vae.dtype)
    shown = [pipe.video_processor.postprocess(video, output_type, [False] * len(video)) for video in videos]
    return np.stack(shown) if output_type == "np" else shown
