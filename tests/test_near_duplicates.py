"""One picture has one vote; and a mask limits what a copy detector sees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur, resize, to_tensor

from diffkit.errors import InputError
from diffkit.images import load_image, load_pil
from diffkit.lab import assets, planted
from diffkit.suspects import read_suspects
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.masked import Masked, limited, template_mask
from memorization.copies.near_duplicates import candidate_pairs, descriptors, duplicate_threshold, group_duplicates
from memorization.copies.tiled import tiled_correlation


def expected_labels(detector: CopyDetector, pictures: list[Tensor | None], threshold: float) -> list[int]:
    """Labels from all pairs of pictures, by scipy."""
    n = len(pictures)
    joined = np.eye(n, dtype=bool)
    for i, j in itertools.product(range(n), repeat=2):
        if pictures[i] is not None and pictures[j] is not None:
            joined[i, j] |= bool((detector.similarity(pictures[i], pictures[j]) >= threshold).any())
    labels = connected_components(joined | joined.T, directed=False)[1]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels.tolist()]


@pytest.mark.parametrize("name", ["tiled", "ms-ssim"])
def test_near_duplicates_are_those_of_all_pairs(name: str) -> None:
    """Photographs of the lab, some of them again; an item with two pictures, one with none, and blank ones."""
    detector = load_copy_detector(name)
    photographs = [load_image(suspect.images[0]) for suspect in read_suspects("lab:planted")[0][:12]]
    again = [
        0.8 * photographs[0] + 0.1,
        resize(photographs[3][:, 4:60, 5:61], [64, 64], antialias=True),
        gaussian_blur(photographs[5], 3),
        photographs[7].flip(-1),
        torch.ones(3, 64, 64),
        torch.full((3, 64, 64), 0.99),
    ]
    pictures: list[Tensor | None] = [*(picture[None] for picture in (*photographs, *again)), None]
    pictures.append(torch.stack([photographs[1].flip(-1), photographs[2]]))
    threshold = duplicate_threshold(detector.threshold)
    labels = group_duplicates(len(pictures), pictures.__getitem__, detector, threshold)
    assert labels == expected_labels(detector, pictures, threshold)
    assert len(set(labels)) < len(labels)


def test_a_detector_that_describes_needs_no_thumbnails() -> None:
    class Described:
        """Similarity is the product of unit vectors, as SSCD's."""

        name, preprocessing, threshold = "described", "none", 0.9

        def describe(self, images: Tensor) -> Tensor:
            return torch.nn.functional.normalize(images.flatten(1) - 0.5, dim=1)

        def similarity(self, images: Tensor, references: Tensor) -> Tensor:
            return self.describe(images) @ self.describe(references).T

    generator = torch.Generator().manual_seed(0)
    pictures = list(torch.rand(5, 1, 3, 8, 8, generator=generator))
    pictures += [pictures[2] + 0.05, pictures[0] * 1.0]
    labels = group_duplicates(7, pictures.__getitem__, Described(), 0.95)
    assert labels == expected_labels(Described(), list(pictures), 0.95) == [0, 1, 2, 3, 4, 2, 0]


def test_candidates_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    described = descriptors(torch.rand(30, 3, 40, 56, generator=torch.Generator().manual_seed(0)))
    assert described.shape == (30, 4, 433)
    torch.testing.assert_close(described.norm(dim=-1), torch.ones(30, 4))
    whole = sorted(candidate_pairs(described, 0.05))
    monkeypatch.setattr("memorization.copies.near_duplicates.BLOCK", 7)
    assert sorted(candidate_pairs(described, 0.05)) == whole
    assert all(i < j for i, j in whole)
    assert 0 < len(whole) < 30 * 29 / 2


def test_flat_pictures_and_empty_lists() -> None:
    detector = load_copy_detector("tiled")
    flat = [torch.full((1, 3, 16, 16), level) for level in (0.0, 0.5)]
    assert group_duplicates(2, flat.__getitem__, detector, 0.9) == [0, 1]
    assert group_duplicates(3, lambda _: None, detector, 0.9) == [0, 1, 2]
    assert group_duplicates(0, lambda _: None, detector, 0.9) == []


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
