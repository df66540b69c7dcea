"""Images in and out: orientation, transparency, crop, rounding."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from diffkit.errors import InputError
from diffkit.images import contact_sheet, data_uri, load_image, load_pil, save_png, to_pil


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    levels = torch.arange(3 * 8 * 6).remainder(256).reshape(3, 8, 6)
    save_png(levels / 255, tmp_path / "deep" / "x.png")
    loaded = load_image(tmp_path / "deep" / "x.png")
    assert loaded.shape == (3, 8, 6)
    assert loaded.dtype == torch.float32
    assert torch.equal((loaded * 255).round().long(), levels)


def test_rounding_is_the_pipelines_own() -> None:
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    reference = VaeImageProcessor.numpy_to_pil(image.permute(1, 2, 0).numpy())[0]
    assert np.array_equal(np.asarray(to_pil(image)), np.asarray(reference))
    assert to_pil(torch.full((3, 1, 1), 2.0)).getpixel((0, 0)) == (255, 255, 255)


def test_upright_by_exif_and_transparency_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # shot with the camera turned
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert load_pil(tmp_path / "turned.jpg").size == (4, 6)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_pil(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("L", (2, 2), 7).save(tmp_path / "gray.png")
    assert load_pil(tmp_path / "gray.png").getpixel((0, 0)) == (7, 7, 7)


def test_centre_crop_keeps_proportions(tmp_path: Path) -> None:
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert load_image(tmp_path / "wide.png", (10, 10)).min() == 1.0
    assert load_image(tmp_path / "wide.png", (5, 15)).shape == (3, 5, 15)


def test_bad_files_and_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no image"):
        load_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(InputError, match="is no image"):
        load_image(tmp_path / "text.png")
    save_png(torch.rand(3, 32, 32), tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    with pytest.raises(InputError, match=r"torn\.png cannot be read"):
        load_image(tmp_path / "torn.png")
    with pytest.raises(ValueError, match=r"\(1, 3, 2, 2\)"):
        to_pil(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="NaN"):
        to_pil(torch.full((3, 2, 2), float("nan")))


def test_data_uri_holds_the_picture() -> None:
    original = Image.new("RGB", (40, 20), (10, 200, 30))
    for max_side, kind, size in ((None, "png", (40, 20)), (40, "png", (40, 20)), (10, "jpeg", (10, 5))):
        head, _, body = data_uri(original, max_side=max_side).partition(",")
        assert head == f"data:image/{kind};base64"
        shown = Image.open(io.BytesIO(base64.b64decode(body)))
        assert shown.size == size
        assert np.abs(np.asarray(shown.convert("RGB"), int) - [10, 200, 30]).max() <= (0 if kind == "png" else 3)
    assert original.size == (40, 20)


def test_contact_sheet_places_row_by_row() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = contact_sheet([Image.new("RGB", (4, 4), colour) for colour in colours], columns=2, gap=2)
    assert sheet.size == (10, 10)
    assert [sheet.getpixel(place) for place in ((0, 0), (6, 0), (0, 6), (9, 9))] == [*colours, (255, 255, 255)]
    with pytest.raises(ValueError, match="0 images"):
        contact_sheet([], columns=2)
