"""Seeds: every candidate image has its own CPU generator, seeded by a documented function of where it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hashlib import sha256

import torch

from diffkit.errors import InputError

__all__ = ["MAX_SEED", "candidate_seed", "check_seed", "generators"]

MAX_SEED = 2**63 - 1  # torch.Generator takes a signed 64-bit integer


def candidate_seed(run_seed: int, prompt_index: int, candidate_index: int) -> int:
    """The seed of one candidate, in [0, 2**63).

    The first eight bytes (big-endian, top bit cleared) of the SHA-256 digest of the ASCII text
    ``"diffkit:{run_seed}:{prompt_index}:{candidate_index}"``. It is part of the file formats and never changes, so
    candidate 3 of prompt 0 has the same noise whatever the number of candidates or prompts.

    Example:
        >>> candidate_seed(7, 0, 0) == candidate_seed(7, 0, 0) != candidate_seed(7, 0, 1)
        True
    """
    text = f"diffkit:{run_seed}:{prompt_index}:{candidate_index}"
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:8], "big") & MAX_SEED


def check_seed(seed: int, name: str = "seed") -> int:
    """``seed`` itself, if it is an integer in [0, 2**63).

    Raises:
        InputError: it is not.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"{name} must be an integer in [0, 2**63), got {seed!r}.")
    return seed


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each seed; noise drawn on the CPU is the same on every machine."""
    return [torch.Generator("cpu").manual_seed(check_seed(seed)) for seed in seeds]


def item_seed(run_seed: int, key: str, purpose: str, index: int = 0) -> int:
    """Seed in [0, 2**63) of one draw: SHA-256 of run seed, item, purpose and index, joined by line feeds.

    It depends on the item's own key, not on its place in a list, so adding or removing items moves nobody's noise.
    """
    digest = sha256("\n".join((str(run_seed), key, purpose, str(index))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
