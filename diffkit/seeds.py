"""Seeds: every candidate image has its own CPU generator, seeded by a documented function of where it stands."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable
from hashlib import sha256

import numpy as np
import torch

from diffkit.errors import InputError

__all__ = ["MAX_SEED", "candidate_seed", "check_seed", "check_seeds", "generators", "plain_integers"]

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
    """``seed`` as a plain integer, if it is an integer in [0, 2**63); numpy's and torch's count too.

    Raises:
        InputError: it is not.

    Example:
        >>> import numpy as np
        >>> check_seed(np.int64(3))
        3
    """
    try:
        whole = -1 if "bool" in type(seed).__name__ else operator.index(seed)
    except TypeError:
        whole = -1
    if not 0 <= whole <= MAX_SEED:
        raise InputError(f"{name} must be an integer in [0, 2**63), got {seed!r}.")
    return whole


def check_seeds(seeds: Iterable[int], name: str = "seeds") -> list[int]:
    """``seeds`` as a list of plain integers: a list, a range, or an array of numpy or torch.

    Raises:
        InputError: they are no list, an empty one, or one with a repetition; or one of them is no seed.

    Example:
        >>> import numpy as np
        >>> check_seeds(np.arange(3))
        [0, 1, 2]
    """
    try:
        listed = list(seeds)
    except TypeError:
        raise InputError(f"{name} must be a list of integers such as [{seeds!r}], got {seeds!r}.") from None
    checked = [check_seed(seed, f"{name}[{position}]") for position, seed in enumerate(listed)]
    if not checked or len(set(checked)) != len(checked):
        raise InputError(f"{name} must be a non-empty list without repetitions.")
    return checked


def plain_integers(settings: object, *names: str) -> None:
    """Attributes of a frozen dataclass that are integers of numpy become Python's own, which JSON can hold.

    Example:
        >>> import numpy as np
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     steps: int
        >>> settings = Settings(np.int64(20))
        >>> plain_integers(settings, "steps")
        >>> settings
        Settings(steps=20)
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, np.integer):
            object.__setattr__(settings, name, int(value))


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each seed; noise drawn on the CPU is the same on every machine."""
    return [torch.Generator("cpu").manual_seed(check_seed(seed)) for seed in seeds]


def item_seed(run_seed: int, key: str, purpose: str, index: int = 0) -> int:
    """Seed in [0, 2**63) of one draw: SHA-256 of run seed, item, purpose and index, joined by line feeds.

    It depends on the item's own key, not on its place in a list, so adding or removing items moves nobody's noise.
    """
    digest = sha256("\n".join((str(run_seed), key, purpose, str(index))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
