"""Read images from files as tensors; write PNG files and data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffkit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["IMAGE_SUFFIXES", "contact_sheet", "data_uri", "load_image", "load_pil", "save_png", "to_pil"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def load_pil(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read an image file as RGB: upright by its EXIF orientation, transparency on white, first frame only.

    Args:
        path: the file.
        size: (height, width) in pixels. The largest centred crop of that shape is resized to it (bicubic, with
            antialiasing), so nothing is stretched.

    Raises:
        InputError: the file is missing, is no image, or is damaged.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            rgba = image.convert("RGBA")
    except FileNotFoundError:
        raise InputError(f"There is no image at {path}.") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no image that can be read.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}.") from error
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    rgb = Image.alpha_composite(white, rgba).convert("RGB")
    if size is None:
        return rgb
    height, width = size
    return ImageOps.fit(rgb, (width, height), method=Image.Resampling.BICUBIC)


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """`load_pil` as a tensor (3, H, W), float32 in [0, 1]. Same arguments and errors."""
    import torch

    pixels = np.asarray(load_pil(path, size), dtype=np.uint8).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32) / 255


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """A PIL image in RGB. A tensor must be (3, H, W) with values in [0, 1]; outside they are clipped.

    Values are rounded to the nearest of the 256 levels, as diffusers does.

    Raises:
        ValueError: the tensor has another shape, or holds NaN.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")  # a copy, also where it is RGB already
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
