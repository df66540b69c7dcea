"""Edited controls: what is kept of the picture and what is not."""

from __future__ import annotations

import pytest
import torch

from diffkit.lab import textures
from memorization.auditing.edited_controls import EDITS, edit

IMAGE = textures.dead_leaves(1, generator=torch.Generator().manual_seed(3))[0]


@pytest.mark.parametrize("name", list(EDITS))
def test_contract(name: str) -> None:
    """Same shape and range, decided by the seed, not the picture itself."""
    made = edit(name, IMAGE, 5)  # type: ignore[arg-type]
    assert made.shape == IMAGE.shape
    assert made.dtype == IMAGE.dtype
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert torch.equal(made, edit(name, IMAGE, 5))  # type: ignore[arg-type]
    assert (made - IMAGE).abs().mean() > 0.02


def test_mirror() -> None:
    assert torch.equal(edit("mirror", IMAGE, 0).flip(-1), IMAGE)


@pytest.mark.parametrize("seed", range(5))
def test_shuffle_moves_every_patch_and_loses_none(seed: int) -> None:
    def patches(image: torch.Tensor) -> torch.Tensor:
        return image.unfold(1, 16, 16).unfold(2, 16, 16).permute(1, 2, 0, 3, 4).flatten(0, 1).flatten(1)

    old, new = patches(IMAGE), patches(edit("shuffle", IMAGE, seed))
    same = torch.cdist(new, old) < 1e-6
    assert same.sum(0).tolist() == same.sum(1).tolist() == [1] * 16
    assert not same.diagonal().any()


def test_crop_is_a_corner() -> None:
    """The four corners of a picture of four flat quadrants."""
    quadrants = torch.tensor([[0.1, 0.3], [0.6, 0.9]]).repeat_interleave(32, 0).repeat_interleave(32, 1)
    seen = {round(float(edit("crop", quadrants.expand(3, -1, -1), seed)[0].median()), 1) for seed in range(40)}
    assert seen == {0.1, 0.3, 0.6, 0.9}


def test_noise_keeps_the_spectrum_and_the_mean() -> None:
    """On a picture of little contrast, where nothing is clipped."""
    image = 0.5 + 0.1 * (IMAGE - 0.5)
    made = edit("noise", image, 1)
    assert made.mean((1, 2)) == pytest.approx(image.mean((1, 2)), abs=1e-5)
    inner = (slice(None), slice(1, 31), slice(1, 31))  # lines that are real by symmetry lose a part of their phase
    one, other = (torch.fft.rfft2(x).abs()[inner] for x in (image, made))
    assert other == pytest.approx(one, rel=1e-2, abs=1e-3)
    correlation = torch.corrcoef(torch.stack([image[0].flatten(), made[0].flatten()]))[0, 1]
    assert abs(correlation) < 0.5
