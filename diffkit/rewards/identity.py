"""What tells a reward from others in the record of a run: names do not, as two functions may have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from torch import nn

from diffkit.rewards.base import Reward
from diffkit.rewards.token_pruning import token_pruning_of

__all__ = ["reward_identity", "weights_digest"]


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 of a network's weights as float32 in the order of their names: the same on every device.

    A token pruning counts as well: with it the same weights are another network.
    """
    digest = hashlib.sha256(str(token_pruning_of(module) or "").encode())
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def reward_identity(reward: Reward) -> dict[str, object]:
    """A reward's name, class and direction, the checksums of its networks, and the same of rewards it is made of.

    JSON values. Of a function no more than its name is known.

    Example:
        >>> from diffkit import load_reward
        >>> sorted(reward_identity(load_reward("lab")))
        ['class', 'higher_is_better', 'name', 'sha256']
    """
    identity: dict[str, object] = {
        "name": reward.name,
        "class": type(reward).__qualname__,
        "higher_is_better": reward.higher_is_better,
    }
    if checksums := [weights_digest(value) for value in _held(reward) if isinstance(value, nn.Module)]:
        identity["sha256"] = checksums
    if parts := [reward_identity(value) for value in _held(reward) if isinstance(value, Reward)]:
        identity["parts"] = parts
    return identity


def _held(reward: Reward) -> Iterator[object]:
    """The attributes of a reward, and what lists and mappings among them hold."""
    for value in getattr(reward, "__dict__", {}).values():  # one with slots shows none
        if isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
        else:
            yield value
