"""Seeds are part of the file formats: these numbers never change."""

from __future__ import annotations

import hashlib

import pytest
import torch

from diffkit.errors import InputError
from diffkit.seeds import MAX_SEED, candidate_seed, check_seed, generators


def test_the_function_is_frozen():
    assert candidate_seed(7, 0, 0) == 7287652337525713546
    assert candidate_seed(7, 1, 0) == int(hashlib.sha256(b"diffkit:7:1:0").hexdigest()[:16], 16) & MAX_SEED


def test_seeds_differ_and_fit_torch():
    seeds = {candidate_seed(run, p, i) for run in range(3) for p in range(12) for i in range(12)}
    assert len(seeds) == 3 * 12 * 12
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    generators([MAX_SEED])


def test_each_generator_is_its_own():
    first, second = generators([5, 5])
    assert torch.equal(torch.randn(4, generator=first), torch.randn(4, generator=second))
    assert first.device.type == "cpu"


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_other_seeds_are_refused(seed):
    with pytest.raises(InputError, match=r"2\*\*63"):
        check_seed(seed)
