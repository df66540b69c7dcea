"""Read images from files as tensors; write PNG files and data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from diffkit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF and EXIF
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC

__all__ = [
    "IMAGE_SUFFIXES",
    "UNREADABLE_SUFFIXES",
    "contact_sheet",
    "data_uri",
    "is_image_name",
    "load_image",
    "load_pil",
    "save_png",
    "to_pil",
    "to_rgb",
    "to_tensor",
]

#: Ends of names of pictures, in small letters.
IMAGE_SUFFIXES = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx", ".pbm", ".pfm",
    ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp",
})  # fmt: skip
#: Ends of names of pictures that Pillow cannot read, or not as it is installed here.
UNREADABLE_SUFFIXES = frozenset(
    (".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".exr")
    + (() if features.check("avif") else (".avif",))
    + (() if features.check("jpg_2000") else (".jp2", ".j2k", ".jpx"))
)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is a picture that can be read here; what is in it decides :func:`load_pil`."""
    suffix = Path(name).suffix.lower()
    return suffix in IMAGE_SUFFIXES and suffix not in UNREADABLE_SUFFIXES


def load_pil(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file as RGB: upright by its EXIF orientation, transparency on white, first frame only.

    More than 8 bits a channel are scaled to 8; see :func:`to_rgb`.

    Args:
        path: the file.
        size: (height, width) in pixels. The largest centred crop of that shape is resized to it (bicubic, with
            antialiasing), so nothing is stretched.

    Raises:
        InputError: the file is missing, is no image, is damaged, or its values have no stated range.
    """
    try:
        with Image.open(path) as opened:
            rgb, orientation = to_rgb(opened), opened.getexif().get(ORIENTATION, 1)
        rgb = _upright(rgb, orientation)
    except FileNotFoundError:
        raise InputError(f"There is no image at {path}.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no image that can be read.") from None
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}.") from error
    if size is None:
        return rgb
    height, width = size
    return ImageOps.fit(rgb, (width, height), method=Image.Resampling.BICUBIC)


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    """Turned by the EXIF orientation alone: Pillow writes all tags again when it turns, and fails on odd ones."""
    bare = Image.Exif()
    bare[ORIENTATION] = orientation
    image.info["exif"] = bare.tobytes()
    return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as 8-bit RGB, a copy.

    - gray of 9 to 16 bits: the full range of the bits becomes 0 to 255, rounded; inverted where a TIFF says so;
    - gray of floating point: must lie in [0, 1], which becomes 0 to 255;
    - gray of 32 bits: refused, since files of this kind do not state their range;
    - transparency (a channel, a palette entry, one colour): white shows through;
    - any other mode: as Pillow converts it; where it cannot, refused.

    Raises:
        ValueError: refused, with the reason.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_in_8_bits(image).convert("RGB")
    if image.mode in ("LAB", "CMYK") or (image.mode == "RGB" and "transparency" not in image.info):
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _gray_in_8_bits(image: Image.Image) -> Image.Image:
    """An L image of a gray one of mode I, I;16 (little or big endian) or F."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError("floating-point values must lie between 0 and 1; save it in 8 or 16 bits")
        levels = values
    else:
        levels = values / (2 ** _gray_bits(image) - 1)
    tags = getattr(image, "tag_v2", {})
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 1 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and image.format == "PNG":
        levels = np.where(values == transparent, 1.0, levels)
    return Image.fromarray((levels * 255).round().astype(np.uint8))


def _gray_bits(image: Image.Image) -> int:
    """Bits of each value of a gray image of whole numbers.

    Raises:
        ValueError: 32 bits, of which a file does not say how many count.
    """
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    if image.mode == "I" and image.format not in ("PNG", "PPM", "JPEG2000"):  # Pillow's wider mode for 16 bits
        raise ValueError("gray values of 32 bits have no stated range; save it in 8 or 16 bits")
    return int(bits[0] if isinstance(bits, tuple) else bits)


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """`load_pil` as a tensor (3, H, W), float32 in [0, 1]. Same arguments and errors."""
    return to_tensor(load_pil(path, size))


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as a tensor (3, H, W), float32 in [0, 1]."""
    import torch

    pixels = np.asarray(image, dtype=np.uint8).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A PIL image in RGB. A tensor must be (3, H, W) with values in [0, 1]; outside they are clipped.

    Values are rounded to the nearest of the 256 levels, as diffusers does.

    Raises:
        ValueError: the tensor has another shape, or holds NaN.
    """
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"expected an image of shape (3, H, W), got {tuple(image.shape)}")
    pixels = image.detach().float().cpu().numpy()
    if np.isnan(pixels).any():
        raise ValueError("the image holds NaN")
    levels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(levels.transpose(1, 2, 0))


def save_png(image: Image.Image | Tensor, path: str | Path) -> None:
    """Write a PNG; parents are made. For files of a run use `Run.save_image`, which is atomic."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    to_pil(image).save(path, format="PNG")


def data_uri(image: Image.Image | Tensor | str | Path, *, max_side: int | None = None) -> str:
    """A ``data:image/...;base64,`` URI of an image or image file.

    Args:
        image: a PIL image, a tensor (3, H, W) in [0, 1], or an image file.
        max_side: the longer side in pixels at most. An image that is made smaller becomes a JPEG, since it is an
            illustration and a report holds hundreds; any other is a PNG, exact to the pixel.
    """
    picture = load_pil(image) if isinstance(image, (str, Path)) else to_pil(image)
    buffer = io.BytesIO()
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
        picture.save(buffer, format="JPEG", quality=90)
        kind = "jpeg"
    else:
        picture.save(buffer, format="PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def contact_sheet(images: Sequence[Image.Image | Tensor], *, columns: int, gap: int = 4) -> Image.Image:
    """Images in a grid, row by row, each in a cell as large as the largest of them, on white.

    Raises:
        ValueError: there are no images, or fewer than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"expected images and at least one column, got {len(images)} images, {columns} columns")
    pictures = [to_pil(image) for image in images]
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, picture in enumerate(pictures):
        sheet.paste(picture, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet
