"""The lab's world: scenes of two shapes, drawn by rule, and the mechanical judge that reads them back.

A scene is "a red circle left of a blue square on gray": two things, one relation, one background. Because the
scenes are drawn from their captions, whether an image shows its caption can be *measured*: :func:`check` segments
the picture by colour and tests each part. No reward model is involved, so the judge is an independent truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

Colour = Literal["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"]
Shape = Literal["circle", "square", "triangle"]
Relation = Literal["left of", "right of", "above", "below"]
Background = Literal["gray", "white", "black", "brown"]

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

_PALETTE = torch.tensor(list(COLOURS.values()) + list(BACKGROUNDS.values()), dtype=torch.float32) / 255
_NAMES = list(COLOURS) + list(BACKGROUNDS)


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
        known = colour in COLOURS and colour2 in COLOURS and shape in SHAPES and shape2 in SHAPES
        if (article, on) != ("a", "on") or not known or relation not in RELATIONS or background not in BACKGROUNDS:
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


def is_held_out(scene: Scene) -> bool:
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


# --------------------------------------------------------------------------------------------- drawing


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


# --------------------------------------------------------------------------------------------- judging


class Judgement(NamedTuple):
    """Which parts of a caption an image shows.

    ``score`` is the graded sum in [0, 1], higher = better: how well each part holds, not only whether it does.
    """

    subject: bool
    object: bool
    relation: bool
    background: bool
    nothing_else: bool
    score: float

    @property
    def correct(self) -> bool:
        """Whether every part holds."""
        return all(self[:5])


class _Blob(NamedTuple):
    colour: str
    mask: np.ndarray
    centre: tuple[float, float]
    fits: dict[str, float]  # shape -> intersection over union with the ideal shape, in [0, 1]

    @property
    def shape(self) -> str:
        return max(self.fits, key=lambda name: self.fits[name])


def _shape_fits(mask: np.ndarray) -> dict[str, float]:
    """Overlap of a blob with each ideal shape that fills the blob's bounding box."""
    rows, columns = np.where(mask)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    y = ((np.arange(top, bottom) + 0.5 - top) / (bottom - top))[:, None] * 2 - 1
    x = ((np.arange(left, right) + 0.5 - left) / (right - left))[None] * 2 - 1
    box = mask[top:bottom, left:right]
    ideals = {"circle": x * x + y * y <= 1, "square": np.ones_like(box), "triangle": 2 * np.abs(x) <= y + 1}
    stretch = min(box.shape) / max(box.shape)  # the ideals are as wide as high
    return {name: stretch * float((box & ideal).sum() / (box | ideal).sum()) for name, ideal in ideals.items()}


def _blobs(labels: np.ndarray) -> list[_Blob]:
    """Connected regions of one colour, thin rims (antialiasing) removed, at least 40 pixels large."""
    found = []
    for index, colour in enumerate(COLOURS):
        same = labels == index
        core = ndimage.binary_opening(same, structure=np.ones((3, 3)))
        regions, count = ndimage.label(ndimage.binary_dilation(core, iterations=3, mask=same))  # corners back on
        for region in range(1, count + 1):
            mask = regions == region
            if mask.sum() >= 40:
                cy, cx = ndimage.center_of_mass(mask)
                found.append(_Blob(colour, mask, (cx, cy), _shape_fits(mask)))
    return found


def _relation_margin(relation: str, subject: _Blob, other: _Blob) -> float:
    """Cosine between the step from object to subject and the relation's axis, in [-1, 1]."""
    step = np.subtract(subject.centre, other.centre)
    return float(step @ np.array(RELATIONS[relation]) / max(float(np.linalg.norm(step)), 1e-6))


def _best_pair(scene: Scene, blobs: list[_Blob]) -> tuple[_Blob | None, _Blob | None]:
    """The two different blobs that fit the two things best (either may be missing)."""

    def fit(blob: _Blob | None, thing: Thing) -> float:
        if blob is None:
            return 0.0
        return (blob.colour == thing.colour) * (0.5 + blob.fits[thing.shape] + (blob.shape == thing.shape))

    choices: list[_Blob | None] = [*blobs, None]
    pairs = [(a, b) for a in choices for b in choices if a is None or a is not b]

    def total(pair: tuple[_Blob | None, _Blob | None]) -> float:
        a, b = pair
        holds = a is not None and b is not None and _relation_margin(scene.relation, a, b) > 0.7071
        return fit(a, scene.subject) + fit(b, scene.object) + 0.25 * holds

    first, second = max(pairs, key=total)
    return (
        first if fit(first, scene.subject) > 0 else None,
        second if fit(second, scene.object) > 0 else None,
    )


def check(image: Tensor, scene: Scene | str) -> Judgement:
    """Judge which parts of a caption an image shows, by colour segmentation and shape overlap.

    Args:
        image: (3, 64, 64) in [0, 1].
        scene: the scene, or its caption.

    Returns:
        A :class:`Judgement`. A relation holds when the step between the two things lies within 45 degrees of its
        axis; ``nothing_else`` when no third blob of an object colour covers 40 pixels or more.
    """
    scene = parse(scene) if isinstance(scene, str) else scene
    pixels = image.detach().float().cpu().permute(1, 2, 0).reshape(-1, 3)
    labels = torch.cdist(pixels, _PALETTE).argmin(1).reshape(image.shape[1:]).numpy()
    blobs = _blobs(labels)
    subject, other = _best_pair(scene, blobs)
    ground = labels >= len(COLOURS)
    share = float((labels[ground] == _NAMES.index(scene.background)).mean()) if ground.any() else 0.0
    both = subject is not None and other is not None
    margin = _relation_margin(scene.relation, subject, other) if subject is not None and other is not None else 0.0
    extra = [blob for blob in blobs if blob is not subject and blob is not other]
    grades = (
        0.5 * subject.fits[scene.subject.shape] + 0.5 * (subject.shape == scene.subject.shape) if subject else 0.0,
        0.5 * other.fits[scene.object.shape] + 0.5 * (other.shape == scene.object.shape) if other else 0.0,
        max(margin, 0.0) if both else 0.0,
        share,
        1.0 / (1 + len(extra)),
    )
    return Judgement(
        subject=subject is not None and subject.shape == scene.subject.shape,
        object=other is not None and other.shape == scene.object.shape,
        relation=both and margin > 0.7071,
        background=share > 0.5,
        nothing_else=not extra,
        score=sum(grades) / len(grades),
    )
