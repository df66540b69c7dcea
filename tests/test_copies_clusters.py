"""One picture has one vote; and a mask limits what a copy detector sees."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from diffkit.errors import InputError
from diffkit.images import load_image, load_pil
from diffkit.lab import assets, planted
from memorization.copies import load_copy_detector
from memorization.copies.clusters import (
    clusters,
    duplicate_threshold,
    reference_similarity,
)
from memorization.copies.masked import Masked, limited, template_mask
from memorization.copies.tiled import tiled_correlation


@given(st.integers(1, 9), st.integers(0, 2**31), st.floats(0.3, 1))
def test_clusters_are_the_connected_components(n: int, seed: int, threshold: float) -> None:
    similarity = torch.rand(n, n, generator=torch.Generator().manual_seed(seed))
    labels = clusters(similarity, threshold)
    passed = similarity >= threshold
    joined = passed | passed.T
    count, expected = connected_components(joined.numpy(), directed=False)
    assert len(set(labels)) == count
    pairs = [(i, j) for i in range(n) for j in range(n)]
    assert all((labels[i] == labels[j]) == (expected[i] == expected[j]) for i, j in pairs)
    assert list(dict.fromkeys(labels)) == list(range(count))  # numbered as they first occur


def test_unknown_similarity_joins_nobody() -> None:
    assert clusters(torch.full((3, 3), math.nan), 0.5) == [0, 1, 2]
    assert clusters(torch.zeros(0, 0), 0.5) == []
    with pytest.raises(InputError, match="square"):
        clusters(torch.zeros(2, 3), 0.5)


def test_near_duplicates_on_the_lab_are_found_and_others_are_not() -> None:
    detector = load_copy_detector("tiled")
    folder = assets.photographs_path("planted")
    names = ("galaxy", "leaves", "cat", "cup")  # two dark templates with one sticker, and two photographs
    images = [load_image(folder / f"{name}.png")[None] for name in names]
    brighter = (images[2] * 0.8 + 0.1).clamp(0, 1)
    other_photo = torch.cat([images[3].flip(-1), brighter])  # several references: the maximum joins
    similarity = reference_similarity(detector, [*images, other_photo, None])
    assert similarity.shape == (6, 6)
    assert similarity[5].isnan().all()
    assert similarity[:, 5].isnan().all()
    torch.testing.assert_close(similarity[:5, :5], similarity[:5, :5].T)
    direct = torch.maximum(
        detector.similarity(images[2], other_photo).max(), detector.similarity(other_photo, images[2]).max()
    )
    assert float(similarity[2, 4]) == pytest.approx(float(direct), abs=1e-5)
    assert similarity[0, 1] > detector.threshold  # why duplicates need a stricter threshold
    assert clusters(similarity, duplicate_threshold(detector.threshold)) == [0, 1, 2, 3, 2, 4]


# ------------------------------------------------------------------------------------------------- masks


@pytest.fixture(scope="module")
def templates() -> Tensor:
    """One layout with six stickers, from the lab's own drawing."""
    lake = next(entry for entry in planted.planted() if entry.name == "lake")
    layout = load_pil(assets.DATA / "layouts" / "lake.png")
    return torch.stack([to_tensor(planted.sticker(layout, variant)) for variant in lake.variants()[::2]])


@pytest.fixture(scope="module")
def outside() -> Tensor:
    """1 where the templates' sticker is not."""
    mask = torch.ones(64, 64)
    left, top, right, bottom = planted.STICKER_BOX
    mask[top:bottom, left:right] = 0
    return mask


def test_a_masked_detector_sees_the_template_and_not_what_varies(templates: Tensor, outside: Tensor) -> None:
    plain = load_copy_detector("tiled")
    masked = Masked(plain, outside)
    assert (masked.similarity(templates[:1], templates[1:]) > plain.similarity(templates[:1], templates[1:])).all()
    assert masked.similarity(templates[:1], templates).min() > 0.98
    assert masked.threshold == plain.threshold
    assert masked.name == "masked tiled"
    assert "inside a mask of 85.9% of the picture" in masked.preprocessing


def test_what_lies_outside_the_mask_never_counts(templates: Tensor, outside: Tensor) -> None:
    masked = Masked(load_copy_detector("tiled"), outside)
    noise = torch.rand(templates.shape, generator=torch.Generator().manual_seed(0))
    spoilt = templates * outside + noise * (1 - outside)
    torch.testing.assert_close(masked.similarity(spoilt, templates), masked.similarity(templates, templates))
    other = load_image(assets.photographs_path("planted") / "cat.png")[None]
    assert masked.similarity(other, templates).max() < masked.threshold


def test_the_whole_picture_level_is_the_masked_correlation(templates: Tensor) -> None:
    """Against the plain formula: zero mean inside the mask, nothing outside."""
    half = torch.zeros(64, 64)
    half[:, 20:60] = 1
    half[10, 40] = 0
    one, other = templates[0], 0.5 * templates[3] + 0.5 * templates[1].flip(-1)
    inside = half.bool()
    a, b = (x[:, inside] - x[:, inside].mean(1, keepdim=True) for x in (one, other))
    expected = float((a * b).sum() / (a.norm() * b.norm()))
    a, b = (limited(x[None], half) for x in (one, other))
    assert a.shape == (1, 3, 64, 40)
    centred = [x - x.mean((2, 3), keepdim=True) for x in (a, b)]
    got = float((centred[0] * centred[1]).sum() / (centred[0].norm() * centred[1].norm()))
    assert got == pytest.approx(expected, abs=1e-5)
    assert float(tiled_correlation(a, a)) > 0.95


def test_any_detector_takes_a_mask_of_any_size(templates: Tensor, outside: Tensor) -> None:
    small = torch.nn.functional.avg_pool2d(outside[None, None], 2)[0, 0]
    scores = Masked(load_copy_detector("ms-ssim"), small).similarity(templates, templates)
    assert scores.shape == (6, 6)
    assert scores.min() > 0.9


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(64, 64), "covers only 0.0%"),
        (torch.ones(1, 64, 64), r"shape \(1, 64, 64\)"),
        (2 * torch.ones(64, 64), "values in"),
        (torch.full((64, 64), math.nan), "values in"),
    ],
)
def test_impossible_masks_are_refused(mask: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Masked(load_copy_detector("tiled"), mask)


def test_a_template_s_mask_comes_from_its_variants(templates: Tensor, outside: Tensor) -> None:
    found = template_mask(templates)
    left, top, right, bottom = planted.STICKER_BOX
    centre = found[top + 8 : bottom - 8, left + 8 : right - 8]
    assert centre.max() == 0  # the shape on the sticker varies
    assert found[outside.bool()].mean() > 0.98
    with pytest.raises(InputError, match="at least 2 pictures"):
        template_mask(templates[:1])
