"""Training data of the lab's reward: pictures drawn by rule, captions true and nearly true, and their labels.

Captions are true, contradict the picture in one point (relation flipped, colours swapped, one word changed) or are
random. A label is the share of the caption that holds, known from how the picture was made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffkit.lab import world
from diffkit.lab.world import Placed, Scene, Thing

PATCH = 8
COLOURS, SHAPES, BACKGROUNDS = list(world.COLOURS), list(world.SHAPES), list(world.BACKGROUNDS)


class Picture(NamedTuple):
    """What a training image shows."""

    things: list[Placed]
    background: str


class Labels(NamedTuple):
    """What holds of a caption in a picture, each in [0, 1]; ``places`` are the named things' centres in [-1, 1]."""

    parts: tuple[float, float, float, float]  # subject, object, relation, background
    places: tuple[float, float, float, float]
    named: tuple[Placed, Placed]

    @property
    def score(self) -> float:
        """The graded share of the caption that holds."""
        return sum(self.parts) / 4


def sample_picture(rng: np.random.Generator) -> Picture:
    """A scene's picture; sometimes with one thing left out or a third thing added, as weak samples have them."""
    scene = _training_scene(rng)
    things = world.arrange(scene, rng)
    event = rng.random()
    if event < 0.1:
        things = things[:1]
    elif event < 0.25:
        things = _add_third(things, rng)
    return Picture([things[i] for i in rng.permutation(len(things))], scene.background)


def _training_scene(rng: np.random.Generator) -> Scene:
    while True:
        scene = world.sample_scenes(1, seed=int(rng.integers(2**31)))[0]
        if not world.is_held_out(scene):
            return scene


def _add_third(things: list[Placed], rng: np.random.Generator) -> list[Placed]:
    thing = Thing(str(rng.choice(COLOURS)), str(rng.choice(SHAPES)))
    for _ in range(20):
        x, y, radius = rng.uniform((12, 12, 6), (52, 52, 11))
        extra = Placed(thing, float(x), float(y), float(radius))
        if all(np.hypot(extra.x - t.x, extra.y - t.y) > extra.radius + t.radius + 3 for t in things):
            return [*things, extra]
    return things


def true_caption(picture: Picture, rng: np.random.Generator) -> Scene:
    """A caption that holds: two of the things (one invented where there is only one) in their relation."""
    first, second = (picture.things * 2)[:2]
    step = (first.x - second.x, first.y - second.y)
    relation = max(world.RELATIONS, key=lambda name: np.dot(step, world.RELATIONS[name]))
    scene = Scene(first.thing, relation, second.thing, picture.background)
    return _change_word(scene, rng) if len(picture.things) == 1 else scene


def hard_negatives(scene: Scene, rng: np.random.Generator) -> list[Scene]:
    """Relation flipped, colours swapped, one word changed: each contradicts the scene wherever it can."""
    first, second = scene.subject, scene.object
    swapped = replace(scene, subject=Thing(second.colour, first.shape), object=Thing(first.colour, second.shape))
    flipped = replace(scene, relation=world.OPPOSITE[scene.relation])
    return [negative for negative in (flipped, swapped, _change_word(scene, rng)) if negative != scene]


def _other(options: list[str], than: str, rng: np.random.Generator) -> str:
    return str(rng.choice([option for option in options if option != than]))


def _change_word(scene: Scene, rng: np.random.Generator) -> Scene:
    first, second = scene.subject, scene.object
    changes = (
        lambda: replace(scene, subject=Thing(_other(COLOURS, first.colour, rng), first.shape)),
        lambda: replace(scene, subject=Thing(first.colour, _other(SHAPES, first.shape, rng))),
        lambda: replace(scene, object=Thing(_other(COLOURS, second.colour, rng), second.shape)),
        lambda: replace(scene, object=Thing(second.colour, _other(SHAPES, second.shape, rng))),
        lambda: replace(scene, relation=_other(list(world.RELATIONS), scene.relation, rng)),
        lambda: replace(scene, background=_other(BACKGROUNDS, scene.background, rng)),
    )
    return changes[rng.integers(len(changes))]()


def sample_captions(picture: Picture, rng: np.random.Generator) -> list[Scene]:
    """Four captions of a picture: true, two hard negatives, and a random one."""
    truth = true_caption(picture, rng)
    negatives = hard_negatives(truth, rng)
    chosen = [negatives[i] for i in rng.permutation(len(negatives))[:2]]
    chosen += [_change_word(truth, rng) for _ in range(2 - len(chosen))]
    return [truth, *chosen, _training_scene(rng)]


def label(picture: Picture, scene: Scene) -> Labels:
    """Compare a caption with what was drawn: the pairing of names and things that makes most of it true."""

    def likeness(placed: Placed, thing: Thing) -> float:
        return (placed.thing.colour == thing.colour) * (0.4 + 0.6 * (placed.thing.shape == thing.shape))

    missing = Placed(Thing("", ""), world.SIZE / 2, world.SIZE / 2, 0.0)
    choices = [*picture.things, missing]
    best, best_parts, best_pair = -1.0, (0.0, 0.0, 0.0), (missing, missing)
    for a in choices:
        for b in choices:
            if a is b and a is not missing:
                continue
            first, second = likeness(a, scene.subject), likeness(b, scene.object)
            relation = _margin(a, b, scene.relation) if first and second else 0.0
            if first + second + relation > best:
                best, best_parts, best_pair = first + second + relation, (first, second, relation), (a, b)
    x1, y1, x2, y2 = (2 * v / world.SIZE - 1 for p in best_pair for v in (p.x, p.y))
    return Labels((*best_parts, float(picture.background == scene.background)), (x1, y1, x2, y2), best_pair)


def _margin(first: Placed, second: Placed, relation: str) -> float:
    step = np.array([first.x - second.x, first.y - second.y])
    cosine = step @ np.array(world.RELATIONS[relation]) / max(float(np.linalg.norm(step)), 1e-6)
    return float(np.clip((cosine - 0.55) / 0.3, 0, 1))


def patch_contents(picture: Picture) -> Tensor:
    """What covers each patch, as shares in [0, 1]: (64, 8 colours + 3 shapes + 4 backgrounds)."""
    maps = torch.zeros(len(COLOURS) + len(SHAPES) + len(BACKGROUNDS), world.SIZE, world.SIZE)
    free = torch.ones(world.SIZE, world.SIZE)
    for placed in picture.things:
        mask = world.cover(placed)
        maps[COLOURS.index(placed.thing.colour)] += mask
        maps[len(COLOURS) + SHAPES.index(placed.thing.shape)] += mask
        free = free * (1 - mask)
    maps[len(COLOURS) + len(SHAPES) + BACKGROUNDS.index(picture.background)] = free
    return F.avg_pool2d(maps.clamp(0, 1), PATCH).flatten(1).T


def soften(images: Tensor) -> Tensor:
    """Rendered images as a soft decoder or a fax would show them: random blur, contrast, tint and noise."""
    n = len(images)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    blurred = torch.lerp(images, blurred, torch.rand(n, 1, 1, 1))
    contrast = 1 + 0.15 * torch.randn(n, 1, 1, 1)
    tint = 0.04 * torch.randn(n, 3, 1, 1)
    noise = 0.06 * torch.rand(n, 1, 1, 1) * torch.randn_like(images)
    return ((blurred - 0.5) * contrast + 0.5 + tint + noise).clamp(0, 1)
