"""Rewards by name. Outsiders add theirs by the entry-point group ``diffkit.rewards``: a function that returns one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.rewards.base import Reward, RewardLike

__all__ = ["REWARDS", "load_reward"]

REWARDS: Registry[Callable[[], Reward]] = Registry("reward", "diffkit.rewards", {"lab": "diffkit.rewards.lab:load"})


def load_reward(reward: RewardLike) -> Reward:
    """A reward by its registered name, as it is, or from a callable ``(images, prompts) -> scores``.

    Raises:
        InputError: an unknown name (the message lists the known ones), or neither a reward nor a callable.
    """
    from diffkit.rewards.base import as_reward

    return as_reward(REWARDS.get(reward)() if isinstance(reward, str) else reward)
