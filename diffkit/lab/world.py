"""The lab's world: scenes of two shapes, drawn by rule from their captions.

A scene is "a red circle left of a blue square on gray": two things, one relation, one background. Because scenes are
drawn by rule, whether an image shows its caption can be *measured*, by :mod:`diffkit.lab.judge`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 36),
    "orange": (247, 140, 20),
    "yellow": (244, 226, 40),
    "green": (36, 160, 60),
    "cyan": (50, 208, 226),
    "blue": (34, 66, 206),
    "purple": (126, 40, 168),
    "pink": (250, 140, 196),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "gray": (128, 128, 128),
    "white": (244, 244, 244),
    "black": (14, 14, 14),
    "brown": (98, 62, 34),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle")
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


class Thing(NamedTuple):
    """One coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """Two things, how the first stands to the second, and what they stand on."""

    subject: Thing
    relation: str
    object: Thing
    background: str

    @property
    def caption(self) -> str:
        """The scene in words: ``a red circle left of a blue square on gray``."""
        return (
            f"a {self.subject.colour} {self.subject.shape} {self.relation} "
            f"a {self.object.colour} {self.object.shape} on {self.background}"
        )


def parse(caption: str) -> Scene:
    """Read a caption back into its scene.

    Raises:
        ValueError: when the caption is not of the world's one sentence form.
    """
    words = caption.lower().split()
    try:
        article, colour, shape, *rest = words
        second = rest.index("a")
        relation = " ".join(rest[:second])
        _, colour2, shape2, on, background = rest[second:]
        in_world = colour in COLOURS and colour2 in COLOURS and shape in SHAPES and shape2 in SHAPES
        if (article, on) != ("a", "on") or not in_world or relation not in RELATIONS or background not in BACKGROUNDS:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"expected a scene such as 'a red circle left of a blue square on gray', got {caption!r}"
        ) from None
    return Scene(Thing(colour, shape), relation, Thing(colour2, shape2), background)


def sample_scenes(n: int, *, seed: int) -> list[Scene]:
    """Draw ``n`` scenes, every part uniform; the two things of a scene always differ."""
    rng = np.random.default_rng(seed)
    things = [Thing(c, s) for c in COLOURS for s in SHAPES]
    scenes = []
    for _ in range(n):
        first, second = rng.choice(len(things), size=2, replace=False)
        relation = list(RELATIONS)[rng.integers(4)]
        background = list(BACKGROUNDS)[rng.integers(4)]
        scenes.append(Scene(things[first], relation, things[second], background))
    return scenes


class Captioned(Protocol):
    """A scene, of however many things."""

    @property
    def caption(self) -> str:
        """The scene in words."""
        ...


def is_held_out(scene: Captioned) -> bool:
    """Whether a scene is kept from every training set: a fixed tenth of all scenes, chosen by its caption."""
    return sum(ord(letter) * (3 + i) for i, letter in enumerate(scene.caption)) % 10 == 0


def held_out_scenes(n: int, *, seed: int) -> list[Scene]:
    """``n`` different scenes that no model of the lab was trained on."""
    pool = dict.fromkeys(scene for scene in sample_scenes(40 * n + 400, seed=seed) if is_held_out(scene))
    return list(pool)[:n]


def training_scenes(n: int, *, seed: int) -> list[Scene]:
    """``n`` scenes for training, none of them held out (repeats are possible)."""
    scenes = [scene for scene in sample_scenes(2 * n + 40, seed=seed) if not is_held_out(scene)]
    return scenes[:n]


class Placed(NamedTuple):
    """A thing with its centre and size on the canvas, in pixels."""

    thing: Thing
    x: float
    y: float
    radius: float


def arrange(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Fresh places and sizes for a scene: clearly apart, the relation within 24 degrees of its axis."""
    radii = rng.uniform(7.5, 11.5, size=2)
    axis = np.array(RELATIONS[scene.relation], dtype=float)
    while True:
        apart = rng.uniform(radii.sum() * 1.1 + 3, 38)
        angle = rng.uniform(-24, 24) * math.pi / 180
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        step = turn @ axis * apart
        middle = rng.uniform(18, SIZE - 18, size=2)
        centres = np.stack([middle + step / 2, middle - step / 2])
        edge = radii[:, None] + 2
        if (centres > edge).all() and (centres < SIZE - 1 - edge).all():
            things = zip((scene.subject, scene.object), centres, radii, strict=True)
            return [Placed(thing, float(x), float(y), float(radius)) for thing, (x, y), radius in things]


def cover(placed: Placed) -> Tensor:
    """How much of each pixel a thing covers: (64, 64) float32 in [0, 1], antialiased."""
    axis = torch.arange(SIZE, dtype=torch.float32)
    x, y = axis[None] - placed.x, axis[:, None] - placed.y
    if placed.thing.shape == "circle":
        distance = (x * x + y * y).sqrt() - placed.radius
    elif placed.thing.shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - 0.89 * placed.radius
    else:  # upright, as high as it is wide: the sides have slope 2, their unit normal is (0.894, -0.447)
        distance = torch.maximum(0.8944 * x.abs() - 0.4472 * (y + placed.radius), y - placed.radius)
    return (0.5 - distance).clamp(0, 1)


def paint(things: list[Placed], background: str) -> Tensor:
    """Things painted in order on a background: (3, 64, 64) float32 in [0, 1]."""
    canvas = (torch.tensor(BACKGROUNDS[background]).view(3, 1, 1) / 255).repeat(1, SIZE, SIZE)
    for placed in things:
        colour = torch.tensor(COLOURS[placed.thing.colour]).view(3, 1, 1) / 255
        canvas += cover(placed) * (colour - canvas)
    return canvas


def draw(scenes: list[Scene], *, seed: int) -> Tensor:
    """Render scenes with fresh places and sizes.

    Returns:
        (len(scenes), 3, 64, 64) float32 in [0, 1].
    """
    rng = np.random.default_rng(seed)
    return torch.stack([paint(arrange(scene, rng), scene.background) for scene in scenes])
