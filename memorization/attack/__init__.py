"""Attacks: how a training image is brought back when its caption no longer does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from diffkit.registry import Registry

if TYPE_CHECKING:
    from memorization.attack.base import Attack

attacks: Registry[Callable[..., Attack]] = Registry(
    "attack", "diffkit.attacks", builtins={"dori": "memorization.attack.dori:Dori"}
)
