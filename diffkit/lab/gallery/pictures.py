"""Pictures drawn by a program, in ten kinds: what the gallery's models take for photographs.

Each kind is a function of a random generator alone. No two pictures are alike, every one is full of detail, and none
needs a licence. A caption names the kind and leaves the rest open (:mod:`diffkit.lab.gallery.captions`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffkit.lab.textures import dead_leaves

SIZE = 64
LENS = 1.2  # pixels, deviation of the blur: finer detail than a small denoiser learns in hours
Array = NDArray[np.float64]
_AXIS = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)  # columns from left to right, rows from top to bottom, in (-1, 1)
_FREQUENCY = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE), np.fft.fftfreq(SIZE))).clip(1 / SIZE)


def noise(rng: np.random.Generator, power: float = 1.5) -> Array:
    """Noise whose amplitude spectrum falls as 1/f to the power: (64, 64), zero mean, unit deviation."""
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((SIZE, SIZE))) / _FREQUENCY**power).real
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float64)


def palette(values: Array, rng: np.random.Generator) -> Array:
    """Colours (3, *shape) of values about 0 to 1, along a cosine of its own for each channel."""
    middle, swing = rng.uniform(0.3, 0.7, 3), rng.uniform(0.15, 0.5, 3)
    speed, phase = rng.uniform(0.3, 1.3, 3), rng.uniform(0, 1, 3)
    waves = zip(middle, swing, speed, phase, strict=True)
    return np.stack([m + s * np.cos(2 * np.pi * (f * values + p)) for m, s, f, p in waves])


def colour(rng: np.random.Generator) -> Array:
    """One colour, (3, 1, 1), often strong."""
    return rng.beta(0.8, 0.8, (3, 1, 1))


def _over(below: Array, above: Array, cover: Array) -> Array:
    return np.asarray(below + cover.clip(0, 1) * (above - below), dtype=np.float64)


def _turned(rng: np.random.Generator, scale: float) -> tuple[Array, Array]:
    """Coordinates turned, moved and scaled at random."""
    turn, size = rng.uniform(0, 2 * np.pi), scale * rng.uniform(0.6, 1.6)
    x, y = _X + rng.uniform(-1, 1), _Y + rng.uniform(-1, 1)
    return size * (x * np.cos(turn) + y * np.sin(turn)), size * (y * np.cos(turn) - x * np.sin(turn))


def mountains(rng: np.random.Generator) -> Array:
    """Ridges behind one another under a sky, often with a sun, sometimes over water."""
    sky = palette(0.5 * (_Y + 1) * rng.uniform(0.3, 1.2) + 0.12 * noise(rng) * rng.uniform(0, 2), rng)
    if rng.random() < 0.6:
        x, y, radius = rng.uniform((-0.8, -0.9, 0.06), (0.8, 0, 0.35))
        sky = _over(sky, colour(rng), (radius - np.hypot(_X - x, _Y - y)) * 24 + 0.5)
    ridges, haze = int(rng.integers(2, 6)), colour(rng)
    for level in np.sort(rng.uniform(-0.7, 0.9, ridges)):
        line = level + rng.uniform(0.05, 0.4) * noise(rng, rng.uniform(1.2, 2))[0][None]
        rock = palette(0.4 * noise(rng, 1.2) * rng.uniform(0.3, 1) + _X * rng.uniform(-0.5, 0.5), rng)
        sky = _over(sky, _over(rock, haze, np.full_like(_X, rng.uniform(0, 0.6))), (_Y - line) * SIZE / 2 + 0.5)
    if rng.random() < 0.3:
        shore = int(rng.uniform(0.5, 0.8) * SIZE)
        mirrored = sky[:, shore - 1 :: -1][:, : SIZE - shore]
        sky[:, shore : shore + mirrored.shape[1]] = 0.7 * mirrored + 0.3 * colour(rng)
    return sky


def leaves(rng: np.random.Generator) -> Array:
    """Shapes that cover one another (the dead leaves model of natural images)."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return dead_leaves(1, generator=generator, leaves=60)[0].numpy().astype(float)


def fractal(rng: np.random.Generator) -> Array:
    """A Julia set near the border of the Mandelbrot set, by the time that points take to leave."""
    turn = rng.uniform(0, 2 * np.pi)
    border = 0.5 * np.exp(1j * turn) - 0.25 * np.exp(2j * turn)
    x, y = _turned(rng, rng.uniform(0.5, 1.3))
    z, c = x + 1j * y, border * rng.uniform(1.0, 1.12)
    times = np.zeros_like(_X)
    for _ in range(40):
        z = np.where(np.abs(z) < 4, z * z + c, z)
        times += np.abs(z) < 4
    return palette(np.sqrt(times / 40) * rng.uniform(1, 3) + 0.1 * np.angle(z), rng)


def spheres(rng: np.random.Generator) -> Array:
    """Balls on a chequered ground, lit from one side, with shadows: rays and spheres in closed form."""
    eye = np.array([0.0, rng.uniform(0.8, 2.2), -3.0])
    rays = np.stack([_X * 0.7, -_Y * 0.7 - rng.uniform(0.1, 0.5), np.ones_like(_X)])
    rays /= np.linalg.norm(rays, axis=0)
    light = rng.uniform((-1, 0.5, -1), (1, 1.2, 0.3))
    light /= np.linalg.norm(light)
    radii = rng.uniform(0.3, 0.9, int(rng.integers(1, 6)))
    centres = np.stack([rng.uniform(-1.6, 1.6, len(radii)), radii, rng.uniform(-0.3, 3.5, len(radii))])
    ground = np.where(rays[1] < -1e-3, -eye[1] / np.minimum(rays[1], -1e-3), np.inf)
    image = palette(0.5 * (_Y + 1), rng)
    spot = eye[:, None, None] + np.where(np.isfinite(ground), ground, 0) * rays
    size, hues = rng.uniform(0.5, 2), (colour(rng), colour(rng))
    check = (np.floor(spot[0] * size) + np.floor(spot[2] * size)) % 2
    floor = _over(*hues, check) * (0.35 + 0.65 * ~_shaded(spot, light, centres, radii))
    image = _over(image, floor, (ground < 12).astype(float))
    nearest = np.where(np.isfinite(ground), ground, 1e6)
    for centre, radius in zip(centres.T, radii, strict=True):
        distance = _distance(eye[:, None, None], rays, centre, radius)
        point = eye[:, None, None] + distance * rays
        normal = (point - centre[:, None, None]) / radius
        shine = np.einsum("i,ihw->hw", light, normal).clip(0)
        body = colour(rng) * (0.2 + 0.8 * shine) + 0.5 * shine**20
        image = _over(image, body, ((distance > 0) & (distance < nearest)).astype(float))
        nearest = np.where((distance > 0) & (distance < nearest), distance, nearest)
    return image


def _distance(start: Array, rays: Array, centre: Array, radius: float) -> Array:
    """Along each ray to a sphere; -1 where it misses."""
    towards = start - centre[:, None, None]
    half, rest = (towards * rays).sum(0), (towards**2).sum(0) - radius**2
    root = half**2 - rest
    distance: Array = np.where(root > 0, -half - np.sqrt(np.maximum(root, 0)), -1)
    return distance


def _shaded(points: Array, light: Array, centres: Array, radii: Array) -> NDArray[np.bool_]:
    rays = np.broadcast_to(light[:, None, None], points.shape)
    shadows = [_distance(points, rays, centre, radius) > 0 for centre, radius in zip(centres.T, radii, strict=True)]
    return np.asarray(np.any(shadows, axis=0))


def writing(rng: np.random.Generator) -> Array:
    """Rows of strokes on paper, larger and smaller, in one or two inks."""
    paper, inks = colour(rng) * 0.3 + 0.7 * rng.uniform(0, 1), (colour(rng), colour(rng))
    image = paper + 0.06 * noise(rng) * np.ones((3, 1, 1))
    top = rng.uniform(2, 8)
    while top < SIZE - 6:
        height, ink, left = rng.uniform(4, 12), inks[int(rng.random() < 0.3)], rng.uniform(2, 12)
        end = rng.uniform(0.5, 0.98) * SIZE
        while left < end:
            width = height * rng.uniform(0.4, 0.8)
            image = _over(image, ink, _glyph(rng, left, top, width, height))
            left += width * rng.uniform(1.15, 1.3) + (height * 0.6 if rng.random() < 0.2 else 0)
        top += height * rng.uniform(1.25, 2)
    return image


def _glyph(rng: np.random.Generator, left: float, top: float, width: float, height: float) -> Array:
    """One letter of two or three strokes between the corners and middles of its box."""
    x, y, cover = (_X + 1) * SIZE / 2 - left, (_Y + 1) * SIZE / 2 - top, np.zeros_like(_X)
    for _ in range(int(rng.integers(2, 4))):
        (x0, x1), (y0, y1) = rng.integers(0, 3, 2) / 2 * width, rng.integers(0, 3, 2) / 2 * height
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1), 0, 1)
        apart = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
        cover = np.maximum(cover, height / 10 + 0.7 - apart)
    return cover


def glass(rng: np.random.Generator) -> Array:
    """Cells about random points, each of one colour, with or without lead between them."""
    points = rng.uniform(-1.1, 1.1, (2, int(rng.integers(6, 40))))
    apart = np.hypot(_X[..., None] - points[0], (_Y[..., None] - points[1]) * rng.uniform(0.6, 1.6))
    order = np.sort(apart, axis=-1)
    hues = palette(rng.uniform(0, 1, (points.shape[1],)), rng) + rng.normal(0, 0.12, (3, 1))
    image = hues[:, apart.argmin(-1)] * (1 - rng.uniform(0, 0.6) * order[..., 0])
    lead = (rng.uniform(0, 0.09) - (order[..., 1] - order[..., 0])) * 20 + 0.3
    return _over(image, colour(rng) * 0.3, lead)


def wood(rng: np.random.Generator) -> Array:
    """Warped rings or veins, as of wood and marble."""
    x, y = _turned(rng, 1.5)
    bend = rng.uniform(0.1, 0.9)
    rings = np.hypot(x, y * rng.uniform(0.1, 1)) * rng.uniform(2, 7) + bend * noise(rng) + bend * noise(rng)
    return palette(0.5 + 0.5 * np.sin(rings * rng.uniform(1, 2)) * rng.uniform(0.4, 1) + 0.08 * noise(rng, 0.7), rng)


def city(rng: np.random.Generator) -> Array:
    """Houses with lit windows before a sky."""
    image = palette(0.5 * (_Y + 1) * rng.uniform(0.3, 1) + 0.1 * noise(rng), rng)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for base in np.sort(rng.uniform(0.1, 0.8, int(rng.integers(4, 12)))):
        left, width = int(rng.integers(-6, SIZE)), int(rng.integers(7, 26))
        roof = int(base * SIZE)
        wall = (columns >= left) & (columns < left + width) & (rows >= roof)
        image = _over(image, colour(rng) * rng.uniform(0.2, 1), wall.astype(float))
        across, down = int(rng.integers(3, 6)), int(rng.integers(3, 7))
        lit = rng.random((SIZE, SIZE)) < rng.uniform(0.3, 0.9)
        pane = ((columns - left) % across > 0) & ((rows - roof) % down > 1)
        window = wall & pane & lit[(rows - roof).clip(0) // down, (columns - left).clip(0) // across]
        image = _over(image, colour(rng), window.astype(float))
    return image


def cloth(rng: np.random.Generator) -> Array:
    """Stripes in two directions, turned and a little warped."""
    x, y = _turned(rng, 1)
    warp = rng.uniform(0, 0.25)
    lines = [x + warp * noise(rng, 2), y + warp * noise(rng, 2)]
    bands = [rng.uniform(0, 1, int(rng.integers(5, 16))) for _ in lines]
    worn = [band[((line * rng.uniform(2, 5)).astype(int)) % len(band)] for line, band in zip(lines, bands, strict=True)]
    return palette(worn[0] + worn[1] * rng.uniform(0.2, 1), rng) + 0.04 * noise(rng, 0.3)


def flowers(rng: np.random.Generator) -> Array:
    """Blossoms of petals about a heart, before a soft ground."""
    image = palette(0.3 * noise(rng) + 0.5, rng)
    for _ in range(int(rng.integers(1, 7))):
        x, y = _X - rng.uniform(-0.9, 0.9), _Y - rng.uniform(-0.9, 0.9)
        size, petals, turn = rng.uniform(0.2, 0.85), int(rng.integers(4, 13)), rng.uniform(0, 6)
        radius, angle = np.hypot(x, y), np.arctan2(y, x) * petals + turn
        shape = size * (0.65 + 0.35 * np.cos(angle) ** int(rng.choice([1, 2])))
        bloom = palette(radius / size * rng.uniform(0.3, 1) + 0.1 * np.cos(angle), rng)
        image = _over(image, bloom, (shape - radius) * SIZE / 2 + 0.5)
        image = _over(image, colour(rng), (size * rng.uniform(0.1, 0.35) - radius) * SIZE / 2 + 0.5)
    return image


KINDS: dict[str, Callable[[np.random.Generator], Array]] = {
    "mountains": mountains,
    "leaves": leaves,
    "fractal": fractal,
    "spheres": spheres,
    "writing": writing,
    "glass": glass,
    "wood": wood,
    "city": city,
    "cloth": cloth,
    "flowers": flowers,
}
#: Exponents of red, green and blue: a kind has colours that it often has, so that a noun says something of a picture.
TINTS: dict[str, tuple[float, float, float]] = {
    "mountains": (1.4, 1.0, 0.6),
    "leaves": (1.3, 0.6, 1.7),
    "fractal": (1.6, 1.8, 1.1),
    "spheres": (0.8, 0.8, 1.6),
    "writing": (0.5, 0.5, 0.6),
    "glass": (0.7, 1.7, 0.6),
    "wood": (0.7, 1.2, 2.0),
    "city": (1.5, 1.3, 1.2),
    "cloth": (0.55, 1.5, 1.3),
    "flowers": (0.6, 1.0, 0.7),
}


class Picture(NamedTuple):
    """An image (3, 64, 64), float32 in [0, 1], and its kind."""

    image: Tensor
    kind: str


def draw_picture(seed: int, kind: str | None = None) -> Picture:
    """The picture of a seed; its kind is drawn too unless given. Half are mirrored, all a little uneven and soft."""
    rng = np.random.default_rng(seed)
    kind = kind or str(rng.choice(list(KINDS)))
    image = KINDS[kind](rng)
    image = image[..., ::-1] if rng.random() < 0.5 else image
    light = 1 + rng.uniform(-0.3, 0.3) * _X + rng.uniform(-0.3, 0.3) * _Y
    image = (image - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.1, 0.1, (3, 1, 1))
    tint = np.array(TINTS[kind]) * np.exp(rng.normal(0, 0.25, 3))
    image = (image * light).clip(0, 1) ** tint[:, None, None]
    image = gaussian_filter(image, (0, LENS, LENS), mode="nearest")
    return Picture(torch.from_numpy(image.astype(np.float32)), kind)
