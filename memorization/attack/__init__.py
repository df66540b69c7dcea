"""Attacks: searches for a text or embedding (a trigger) from which the model generates a given training image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffkit.registry import Registry

if TYPE_CHECKING:
    from memorization.attack.base import Attack

attacks: Registry[Callable[..., Attack]] = Registry(
    "attack",
    "diffkit.attacks",
    builtins={
        "dori": "memorization.attack.dori:Dori",
        "norm-bounded": "memorization.attack.norm_bounded:NormBounded",
        "low-rank": "memorization.attack.low_rank:LowRank",
        "soft-tokens-1": "memorization.attack.soft_tokens:SoftTokens1",
        "soft-tokens-4": "memorization.attack.soft_tokens:SoftTokens4",
        "soft-tokens-16": "memorization.attack.soft_tokens:SoftTokens16",
        "hard-tokens": "memorization.attack.hard_tokens:HardTokens",
        "words": "memorization.attack.words:Words",
    },
)
