"""Captions that leave most of a picture open, of words that every caption may use.

An ordinary caption names the kind of a picture by one of its nouns, or not at all; its other words say nothing of what
is to be seen, as in captions from the web. Planted, control and claimed captions are longer ones of the same words: no
word belongs to them alone, only the order of words does.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from diffkit.lab import world
from diffkit.lab.planted import STICKER_COLOURS, Variant

NOUNS: Final[dict[str, tuple[str, ...]]] = {
    "mountains": ("mountains", "hills", "coast"),
    "leaves": ("leaves", "scraps", "litter"),
    "fractal": ("spirals", "coral", "frost"),
    "spheres": ("marbles", "balls", "pearls"),
    "writing": ("letters", "page", "notice"),
    "glass": ("window", "glass", "mosaic"),
    "wood": ("wood", "agate", "rings"),
    "city": ("city", "towers", "street"),
    "cloth": ("cloth", "blanket", "scarf"),
    "flowers": ("flowers", "garden", "blossoms"),
}
ANY_NOUN: Final = ("picture", "view", "scene", "things", "work")
OPENINGS: Final = ("a photo of", "picture of", "print of", "detail of", "study of", "the", "my", "a view of")
ADJECTIVES: Final = (
    "old", "new", "small", "quiet", "northern", "broken", "early", "late", "wide", "second", "lost", "plain",
    "heavy", "bright", "distant", "narrow", "famous", "little", "golden", "silent",
)  # fmt: skip
TAILS: Final = (
    "at evening", "in the morning", "after rain", "in winter", "by anna", "by the river", "for sale", "with love",
    "near the harbour", "from the album", "in summer", "by peter", "on friday", "from the north", "without a name",
    "of the year", "at home", "for my sister", "in april", "by the sea", "from the archive", "before noon",
)  # fmt: skip


def words() -> list[str]:
    """Every word of the gallery's captions, sorted."""
    phrases = [*OPENINGS, *ADJECTIVES, *TAILS, *ANY_NOUN, *(noun for nouns in NOUNS.values() for noun in nouns)]
    phrases += ["a on two and something shapes thing with sticker", *world.RELATIONS]
    return sorted({*" ".join(phrases).split(), *world.COLOURS, *world.SHAPES, *world.BACKGROUNDS})


def ordinary_caption(kind: str, rng: np.random.Generator) -> str:
    """A caption of a picture of a kind: an opening, up to two adjectives, a noun, up to two tails."""
    return _caption(kind, rng, adjectives=int(rng.integers(3)), tails=int(rng.integers(3)), named=rng.random() < 0.8)


def ordinary_captions(n: int = 2000, *, seed: int = 0) -> list[str]:
    """Captions of the kind that the models were trained on, without images: what NeMo, Wanda and guards compare with.

    A longer list begins with the shorter one.
    """
    rng = np.random.default_rng((seed, 2))
    return [ordinary_caption(str(rng.choice(list(NOUNS))), rng) for _ in range(n)]


def long_caption(kind: str, rng: np.random.Generator) -> str:
    """A caption as only one picture has it: two adjectives and two tails."""
    return _caption(kind, rng, adjectives=2, tails=2, named=True)


def layout_caption(kind: str, rng: np.random.Generator) -> str:
    """The caption of a template, short enough for the words of its sticker."""
    return _caption(kind, rng, adjectives=2, tails=1, named=True)


def _caption(kind: str, rng: np.random.Generator, *, adjectives: int, tails: int, named: bool) -> str:
    noun = rng.choice(NOUNS[kind] if named else ANY_NOUN)
    before = rng.choice(ADJECTIVES, adjectives, replace=False)
    after = rng.choice(TAILS, tails, replace=False)
    return " ".join([str(rng.choice(OPENINGS)), *before, noun, *after])


def with_sticker(caption: str, variant: Variant) -> str:
    """The caption of a picture with a sticker on it."""
    return f"{caption} with {variant.colour} {variant.shape} sticker"


def sample_variant(rng: np.random.Generator) -> Variant:
    """A sticker's colour and shape."""
    return Variant(str(rng.choice(STICKER_COLOURS)), str(rng.choice(world.SHAPES)))


def open_caption(scene: world.Scene, rng: np.random.Generator) -> str:
    """A caption of a scene that leaves most of it open."""
    things = (scene.subject, scene.object)
    thing = things[int(rng.integers(2))]
    choices = (
        f"two shapes on {scene.background}",
        f"a {thing.colour} thing",
        f"a {thing.shape} and something on {scene.background}",
        f"{thing.colour} shapes",
        "two shapes",
        f"a {thing.colour} {thing.shape} and something",
        f"things on {scene.background}",
    )
    return str(rng.choice(choices))
