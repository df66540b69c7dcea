"""Every attack and what it can do: one row each, for the contract tests of all attacks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from memorization.attack.base import Target


class Row(NamedTuple):
    """Capabilities of an attack.

    Attributes:
        name: as registered.
        from_start: budget 0 is the start itself.
        texts: the triggers are texts.
        gradients: it has a learning rate.
        tolerance: largest difference between a target attacked alone and in company.
    """

    name: str
    from_start: bool
    texts: bool
    gradients: bool
    tolerance: float


ROWS = [
    Row("words", from_start=False, texts=True, gradients=False, tolerance=0),
    Row("hard-tokens", from_start=False, texts=True, gradients=True, tolerance=0),
    Row("soft-tokens-1", from_start=False, texts=False, gradients=True, tolerance=5e-3),
    Row("soft-tokens-4", from_start=False, texts=False, gradients=True, tolerance=5e-3),
    Row("soft-tokens-16", from_start=False, texts=False, gradients=True, tolerance=5e-3),
    Row("low-rank", from_start=True, texts=False, gradients=True, tolerance=2e-3),
    Row("norm-bounded", from_start=True, texts=False, gradients=True, tolerance=2e-3),
    Row("dori", from_start=True, texts=False, gradients=True, tolerance=2e-3),
]


def targets(n: int) -> list[Target]:
    """Random images and starts; a text for every other one."""
    generator = torch.Generator().manual_seed(9)
    return [
        Target(
            torch.rand(3, 64, 64, generator=generator),
            torch.randn(16, 32, generator=generator),
            seed=100 + index,
            text="a cat at dog" if index % 2 else None,
        )
        for index in range(n)
    ]
