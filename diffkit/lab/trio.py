"""Scenes of three things, "a red circle left of a blue square above a green triangle on gray".

They are harder to draw than the world's scenes of two: two relations must hold at once. Each is judged and rewarded
clause by clause, as the two scenes of two that it is made of.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffkit.lab.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZE, Placed, Scene, Thing, is_held_out, paint

ACROSS, UPRIGHT = ("left of", "right of"), ("above", "below")  # a trio has one relation of each kind
_THING = rf"a ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_RELATION = f"({'|'.join(RELATIONS)})"
_CAPTION = re.compile(rf"{_THING} {_RELATION} {_THING} {_RELATION} {_THING} on ({'|'.join(BACKGROUNDS)})")


@dataclass(frozen=True)
class Trio:
    """How the first thing stands to the second, the second to the third, and what they stand on."""

    first: Thing
    relation: str
    second: Thing
    other_relation: str
    third: Thing
    background: str

    @property
    def caption(self) -> str:
        """The trio in words; 14 tokens, all that the lab's text encoder reads."""
        first, second, third = (f"a {thing.colour} {thing.shape}" for thing in (self.first, self.second, self.third))
        return f"{first} {self.relation} {second} {self.other_relation} {third} on {self.background}"

    @property
    def clauses(self) -> tuple[Scene, Scene]:
        """The two scenes of two things that it is made of."""
        return (
            Scene(self.first, self.relation, self.second, self.background),
            Scene(self.second, self.other_relation, self.third, self.background),
        )


def parse_trio(caption: str) -> Trio | None:
    """Read a caption back; None when it is not of a trio's form."""
    match = _CAPTION.fullmatch(" ".join(caption.lower().split()))
    if match is None:
        return None
    word = match.groups()
    return Trio(Thing(*word[:2]), word[2], Thing(*word[3:5]), word[5], Thing(*word[6:8]), word[8])


def clauses(caption: str) -> tuple[str, str]:
    """Captions of a trio's two clauses; any other caption twice."""
    trio = parse_trio(caption)
    return (caption, caption) if trio is None else (trio.clauses[0].caption, trio.clauses[1].caption)


def sample_trios(n: int, *, seed: int) -> list[Trio]:
    """Draw ``n`` trios, every part uniform; their three colours differ."""
    rng = np.random.default_rng(seed)
    trios = []
    for _ in range(n):
        colours = rng.choice(list(COLOURS), size=3, replace=False)
        thing_1, thing_2, thing_3 = (Thing(str(colour), SHAPES[rng.integers(3)]) for colour in colours)
        pair = [ACROSS[rng.integers(2)], UPRIGHT[rng.integers(2)]]
        first, second = pair if rng.random() < 0.5 else pair[::-1]
        trios.append(Trio(thing_1, first, thing_2, second, thing_3, list(BACKGROUNDS)[rng.integers(4)]))
    return trios


def held_out_trios(n: int, *, seed: int) -> list[Trio]:
    """``n`` different trios that no model of the lab was trained on."""
    pool = dict.fromkeys(trio for trio in sample_trios(40 * n + 400, seed=seed) if is_held_out(trio))
    return list(pool)[:n]


def training_trios(n: int, *, seed: int) -> list[Trio]:
    """``n`` trios for training, none of them held out (repeats are possible)."""
    return [trio for trio in sample_trios(2 * n + 40, seed=seed) if not is_held_out(trio)][:n]


def arrange_trio(trio: Trio, rng: np.random.Generator) -> list[Placed]:
    """Fresh places and sizes: clearly apart, each relation within 18 degrees of its axis."""
    while True:
        radii = rng.uniform(6.5, 9, size=3)
        middle = rng.uniform(10, SIZE - 11, size=2)
        first = middle + _step(trio.relation, radii[:2], rng)
        third = middle - _step(trio.other_relation, radii[1:], rng)
        centres, edge = np.stack([first, middle, third]), radii[:, None] + 1.5
        inside = (centres > edge).all() and (centres < SIZE - 1 - edge).all()
        if inside and np.hypot(*(first - third)) > radii[0] + radii[2] + 3:
            things = zip((trio.first, trio.second, trio.third), centres, radii, strict=True)
            return [Placed(thing, float(x), float(y), float(radius)) for thing, (x, y), radius in things]


def _step(relation: str, radii: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """From one thing to the one that stands so to it, at least a gap of their sizes and at most 30 pixels."""
    angle = rng.uniform(-18, 18) * math.pi / 180
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    step: np.ndarray = turn @ np.array(RELATIONS[relation], dtype=float) * rng.uniform(radii.sum() * 1.1 + 2, 30)
    return step


def draw_trios(trios: list[Trio], *, seed: int) -> Tensor:
    """Render trios with fresh places and sizes: (len(trios), 3, 64, 64) float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    return torch.stack([paint(arrange_trio(trio, rng), trio.background) for trio in trios])
