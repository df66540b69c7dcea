"""Images in and out: orientation, transparency, crop, rounding."""

from __future__ import annotations

import base64
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, features

from diffkit.errors import InputError
from diffkit.images import contact_sheet, data_uri, is_image_name, load_image, load_pil, save_png, to_pil


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


def ramp(bits: int) -> np.ndarray:
    """A gray ramp over the full range of the bits, 256 wide."""
    return np.tile(np.linspace(0, 2**bits - 1, 256).round(), (4, 1))


def test_deep_gray_keeps_its_shades(tmp_path: Path) -> None:
    levels = np.tile(np.arange(256), (4, 1))
    deep = ramp(16).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "gray.png")
    Image.fromarray(deep).save(tmp_path / "gray.tif")
    Image.fromarray(deep).save(tmp_path / "gray.pgm", format="PPM")
    Image.fromarray(deep).save(tmp_path / "gray.jp2", irreversible=False)
    Image.fromarray(deep.astype(">u2")).save(tmp_path / "big-endian.tif")
    Image.fromarray(ramp(16).astype(np.float32) / 65535).save(tmp_path / "float.tif")
    Image.fromarray(65535 - deep).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    for path in sorted(tmp_path.iterdir()):
        pixels = np.asarray(load_pil(path), int)
        assert pixels.shape == (4, 256, 3), path.name
        assert np.abs(pixels - levels[..., None]).max() <= 1, path.name
    assert np.abs(np.asarray(to_pil(Image.fromarray(deep)), int) - levels[..., None]).max() <= 1


def test_twelve_bits_are_not_read_as_sixteen(tmp_path: Path) -> None:
    """A TIFF of 12 bits a value, packed by hand: four values in six bytes."""
    values = [0, 4095, 2048, 1024]
    bits = "".join(f"{value:012b}" for value in values)
    strip = int(bits, 2).to_bytes(6, "big")
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    offset = 8 + len(strip)
    content = b"II*\0" + struct.pack("<I", offset) + strip + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"
    (tmp_path / "twelve.tif").write_bytes(content)
    assert np.asarray(load_pil(tmp_path / "twelve.tif"))[0, :, 0].tolist() == [0, 255, 128, 64]


def test_values_without_a_stated_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "long.tif")
    Image.fromarray(np.full((2, 2), 200.0, np.float32)).save(tmp_path / "bright.tif")
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "nan.tif")
    for name, reason in {
        "long": "32 bits",
        "bright": "between 0 and 1",
        "nan": "between 0 and 1",
    }.items():
        with pytest.raises(InputError, match=rf"{name}\.tif cannot be read as an image: .*{reason}"):
            load_pil(tmp_path / f"{name}.tif")


def test_one_transparent_shade_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 300, np.uint16)).save(tmp_path / "deep.png", transparency=300)
    Image.new("L", (2, 2), 7).save(tmp_path / "gray.png", transparency=7)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "colour.png", transparency=(1, 2, 3))
    for path in tmp_path.iterdir():
        assert load_pil(path).getpixel((0, 0)) == (255, 255, 255), path.name


def test_names_of_pictures() -> None:
    assert all(is_image_name(name) for name in ("a.PNG", "b.jfif", "c.tif"))
    assert not any(is_image_name(name) for name in ("a.heic", "b.txt", "png"))
    assert is_image_name("a.avif") == features.check("avif")


def test_other_modes_are_converted_as_pillow_does(tmp_path: Path) -> None:
    colour = Image.new("RGB", (8, 8), (200, 100, 50))
    colour.convert("CMYK").save(tmp_path / "cmyk.tif")
    colour.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    colour.save(tmp_path / "moving.webp", save_all=True, append_images=[Image.new("RGB", (8, 8))], lossless=True)
    lab = Image.new("LAB", (8, 8), (128, 128, 128))
    lab.save(tmp_path / "lab.tif")
    for path in tmp_path.iterdir():
        expected = lab.convert("RGB") if path.stem == "lab" else colour
        assert np.abs(np.asarray(load_pil(path), int) - np.asarray(expected, int)).max() <= 1, path.name


@pytest.mark.parametrize("orientation", [1, 6])
def test_odd_tags_beside_the_orientation_do_not_matter(tmp_path: Path, orientation: int) -> None:
    """A resolution that is text, as some editors leave it, which Pillow cannot write again."""
    text = b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIHxx", 0x0112, 3, 1, orientation)
    text += struct.pack("<HHI4s", 0x011A, 2, 4, b"300\0") + b"\0\0\0\0"
    Image.new("RGB", (6, 4), (0, 0, 255)).save(tmp_path / "odd.jpg", exif=b"Exif\0\0" + text)
    assert load_pil(tmp_path / "odd.jpg").size == ((6, 4) if orientation == 1 else (4, 6))
