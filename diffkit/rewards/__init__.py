"""Rewards by name. Others join by the entry-point group ``diffkit.rewards``: functions that return one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from diffkit.errors import InputError
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.rewards.base import Reward, RewardLike

__all__ = ["REWARDS", "load_reward"]

REWARDS: Registry[Callable[..., Reward]] = Registry(
    "reward",
    "diffkit.rewards",
    {
        "lab": "diffkit.rewards.lab:load",
        "lab-trio": "diffkit.rewards.lab:load_trio",
        "aesthetic": "diffkit.rewards.aesthetic:load",
        "clip-score": "diffkit.rewards.clip_score:load",
        "ensemble": "diffkit.rewards.ensemble:load",
        "hps-v2": "diffkit.rewards.hps:load_v2",
        "hps-v2.1": "diffkit.rewards.hps:load_v21",
        "image-reward": "diffkit.rewards.image_reward:load",
        "pick-score": "diffkit.rewards.pick_score:load",
    },
)


def load_reward(reward: RewardLike) -> Reward:
    """A reward by its registered name, as it is, or from a callable ``(images, prompts) -> scores``.

    Behind a name may stand where its weights are, and options: ``pick-score:/folder``, ``pick-score:owner/model``,
    ``clip-score:/folder:convention=percent``, ``hps-v2.1:device=cpu``.

    Raises:
        InputError: an unknown name or option (the message lists the known ones), weights that are not there, or
            neither a reward nor a callable.

    Example:
        >>> from diffkit.lab import world
        >>> shown = "a red circle left of a blue square on gray"
        >>> images = world.draw([world.parse(shown)], seed=0)
        >>> reward = load_reward("lab")
        >>> for caption in (shown, "a red circle left of a green square on gray"):
        ...     print(f"{float(reward.score(images, [caption])):.1f}  {caption}")
        0.9  a red circle left of a blue square on gray
        0.5  a red circle left of a green square on gray
    """
    from diffkit.rewards.base import as_reward

    return as_reward(_from_text(reward) if isinstance(reward, str) else reward)


def _from_text(text: str) -> Reward:
    name, colon, rest = text.partition(":")
    factory = REWARDS.get(name)
    if not colon:
        return factory()
    parts = rest.split(":")
    is_option = re.compile(r"[a-z_]+=[^+]*$").match  # a plus stands between the rewards of an ensemble
    options = dict(part.split("=", 1) for part in parts if is_option(part))
    location = ":".join(part for part in parts if not is_option(part))
    parameters = inspect.signature(factory).parameters
    unknown = [key for key in options if key not in parameters or key in ("location", "version")]
    if unknown or (location and "location" not in parameters) or not (location or options):
        possible = [f"{key}=" for key in parameters if key not in ("location", "version")]
        takes = ", ".join([*(["a location"] if "location" in parameters else []), *possible]) or "nothing"
        wrong = f"option {unknown[0]!r}" if unknown else repr(rest)
        raise InputError(f"The reward {name!r} does not understand {wrong} in {text!r}; it takes {takes}.")
    return factory(location, **options) if location else factory(**options)
