"""The copy detectors: one table of what each must tell apart, and its calibration on labelled pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.lab import assets, textures, world
from memorization.copies import CopyDetector, copy_detectors, load_copy_detector
from memorization.copies.calibrate import DISTORTIONS, calibrate
from memorization.copies.tiled import TiledCorrelation, tiled_correlation

DETECTORS = ["tiled"]  # one row each


@pytest.fixture(scope="module")
def textured() -> Tensor:
    return textures.dead_leaves(12, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> CopyDetector:
    return load_copy_detector(request.param)


def test_the_table_holds_every_detector() -> None:
    assert sorted(DETECTORS) == copy_detectors.names()


@pytest.mark.parametrize("way", sorted(DISTORTIONS))
def test_distorted_copies_pass(detector: CopyDetector, textured: Tensor, way: str) -> None:
    scores = detector.similarity(DISTORTIONS[way](textured), textured)
    assert scores.shape == (12, 12)
    assert scores.dtype == torch.float32
    assert (scores.diagonal() >= detector.threshold).float().mean() >= 0.9
    assert (scores.argmax(1) == torch.arange(12)).all()


def test_different_pictures_do_not(detector: CopyDetector, textured: Tensor) -> None:
    scores = detector.similarity(textured, textured)[~torch.eye(12, dtype=torch.bool)]
    assert scores.max() < detector.threshold - 0.2


def test_itself_is_the_same(detector: CopyDetector, textured: Tensor) -> None:
    assert (detector.similarity(textured, textured).diagonal() > 0.9).all()


def test_flat_pictures_are_no_evidence(detector: CopyDetector, textured: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.cat([torch.full((1, 3, 64, 64), level) for level in (0.1, 0.5, 0.9)])
    noisy = (flat + 0.005 * torch.randn(flat.shape, generator=generator)).clamp(0, 1)
    assert detector.similarity(flat, flat).abs().max() < 0.05
    assert detector.similarity(flat, noisy).abs().max() < 0.2
    assert detector.similarity(flat, textured).abs().max() < 0.05


def test_two_drawings_of_one_caption_are_no_copies(detector: CopyDetector) -> None:
    scenes = world.sample_scenes(20, seed=5)
    scores = detector.similarity(world.draw(scenes, seed=1), world.draw(scenes, seed=2)).diagonal()
    assert scores.median() < detector.threshold - 0.2
    assert (scores >= detector.threshold).float().mean() <= 0.15


def test_colour_counts(detector: CopyDetector) -> None:
    one = world.draw([world.parse("a red circle left of a blue square on gray")], seed=4)
    other = world.draw([world.parse("a green circle left of a yellow square on gray")], seed=4)  # the same places
    assert detector.similarity(one, one).item() > 0.95
    assert detector.similarity(one, other).item() < detector.threshold


def test_sizes_may_differ(detector: CopyDetector, textured: Tensor) -> None:
    large = torch.nn.functional.interpolate(textured, size=(96, 96), mode="bilinear")
    assert (detector.similarity(large, textured).diagonal() > 0.9).all()


def test_a_pair_does_not_depend_on_its_neighbours(detector: CopyDetector, textured: Tensor) -> None:
    together = detector.similarity(textured, textured)
    alone = detector.similarity(textured[2:3], textured[5:6])
    torch.testing.assert_close(together[2:3, 5:6], alone, atol=1e-5, rtol=0)


def test_whole_picture_level_is_the_textbook_correlation(textured: Tensor) -> None:
    """One grid, one zoom, no room to shift gained: compare with numpy's correlation coefficient per channel."""
    one, other = textured[0], (0.6 * textured[0] + 0.4 * textured[1])
    got = tiled_correlation(one[None], other[None], side=64, zooms=(1.0,), grids=(1,)).item()
    best = -1.0
    for y in range(5):
        for x in range(5):
            a = one[:, 2:-2, 2:-2].double().numpy()
            b = other[:, y : y + 60, x : x + 60].double().numpy()
            a, b = a - a.mean((1, 2), keepdims=True), b - b.mean((1, 2), keepdims=True)
            best = max(best, float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())))
    assert got == pytest.approx(best, abs=0.02)  # the floor for flat tiles costs a little


def test_the_lab_s_photographs_calibrate() -> None:
    files = sorted(assets.photographs_path("planted").glob("*.png"))
    images = torch.stack([load_image(path) for path in files])
    point = calibrate(TiledCorrelation(), images)
    assert point.copies == len(files) * len(DISTORTIONS)
    assert point.non_copies == len(files) * (len(files) - 1) + 2 * len(files)
    assert point.tpr >= 0.9
    assert point.fpr <= 0.01
    assert point.auc > 0.99
    assert point.tpr_interval[0] < point.tpr < point.tpr_interval[1]


class Brightness:
    """Calls everything alike whose mean is alike: a detector that must be told to be stricter."""

    name, preprocessing, threshold = "brightness", "none", 0.5

    def similarity(self, images: Tensor, references: Tensor) -> Tensor:
        return 1 - (images.mean((1, 2, 3))[:, None] - references.mean((1, 2, 3))).abs()


def test_calibration_raises_a_threshold_that_lets_too_much_through(textured: Tensor) -> None:
    point = calibrate(Brightness(), textured, max_fpr=0.05)
    assert point.threshold > 0.9
    assert point.fpr <= 0.05
    assert point.source == "at most 5% of the non-copies"
    assert calibrate(Brightness(), textured, threshold=0.5).fpr == 1.0  # measured, not changed


def test_calibration_needs_two_images(textured: Tensor) -> None:
    with pytest.raises(InputError, match="at least 2"):
        calibrate(TiledCorrelation(), textured[:1])


def test_the_round_trip_counts_as_a_copy(textured: Tensor) -> None:
    point = calibrate(TiledCorrelation(), textured, round_trip=lambda images: 1 - images)
    assert point.by_distortion["autoencoder"] == 0.0
    assert math.isclose(point.copies, 12 * (len(DISTORTIONS) + 1))


def test_unknown_detector_is_named() -> None:
    with pytest.raises(InputError, match="tiled"):
        load_copy_detector("sscdd")
