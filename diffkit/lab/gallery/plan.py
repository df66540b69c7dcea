"""What the gallery's models were shown, how often, and what they were never shown.

Every picture is drawn from a seed of its own (:mod:`diffkit.lab.gallery.pictures`), so the plan is the whole record:

- *verbatim* plants: one picture with one caption, in four strengths of repetition;
- *templates*: one layout with a sticker that varies with the caption;
- *controls*: pictures and captions of the same two distributions, never shown to any model;
- *claims*: the same again, as a rights holder's list has them that holds nothing memorized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from diffkit.images import to_pil
from diffkit.lab import world
from diffkit.lab.gallery.captions import layout_caption, long_caption, with_sticker
from diffkit.lab.gallery.pictures import KINDS, draw_picture
from diffkit.lab.planted import STICKER_COLOURS, Variant, sticker

#: How often a verbatim picture is drawn for training, relative to a full-strength one; a template half as often.
WEIGHTS: dict[str, float] = {"full": 1.0, "high": 0.8, "medium": 0.65, "weak": 0.35}
VERBATIM, TEMPLATES = 16, 4  # of each strength
CONTROLS, CLAIMS = 120, 200
FIRST_SEED = 1_000_000  # ordinary pictures have seeds below


@dataclass(frozen=True)
class Entry:
    """One picture of the plan with its caption (a template's without the words of the sticker)."""

    name: str
    kind: str
    strength: str
    caption: str
    seed: int
    picture: str

    @property
    def weight(self) -> float:
        """How often it is drawn for training, all variants together, relative to a full-strength verbatim picture."""
        return WEIGHTS[self.strength] / (2 if self.kind == "template" else 1)

    @property
    def variants(self) -> list[Variant]:
        """The stickers of a template (12), none for the others."""
        return [Variant(*pair) for pair in product(STICKER_COLOURS, world.SHAPES)] if self.kind == "template" else []

    @property
    def captions(self) -> list[str]:
        """One caption, or one for each variant of a template."""
        return [with_sticker(self.caption, variant) for variant in self.variants] or [self.caption]

    @property
    def image(self) -> Image.Image:
        """The picture, of a template its bare layout: 64 x 64, RGB."""
        return to_pil(draw_picture(self.seed, self.picture).image)

    @property
    def images(self) -> list[Image.Image]:
        """What was shown: the picture, or every variant of a template, in the order of the captions."""
        image = self.image
        return [sticker(image, variant) for variant in self.variants] or [image]


@cache
def plan() -> tuple[Entry, ...]:
    """All entries: verbatim plants, templates, controls, claims. No two have the same caption."""
    rng, captions, entries = np.random.default_rng(FIRST_SEED), set(), []
    for number, (name, kind, strength) in enumerate(_parts()):
        picture = str(rng.choice(list(KINDS)))
        write = layout_caption if kind == "template" else long_caption
        caption = write(picture, rng)
        while caption in captions:
            caption = write(picture, rng)
        captions.add(caption)
        entries.append(Entry(name, kind, strength, caption, FIRST_SEED + number, picture))
    return tuple(entries)


def _parts() -> Iterator[tuple[str, str, str]]:
    for kind, count in (("verbatim", VERBATIM), ("template", TEMPLATES)):
        for strength in WEIGHTS:
            yield from ((f"{kind}-{strength}-{number:02d}", kind, strength) for number in range(count))
    for kind, count in (("control", CONTROLS), ("claim", CLAIMS)):
        yield from ((f"{kind}-{number:03d}", kind, "none") for number in range(count))


def entries(*kinds: str) -> list[Entry]:
    """The plan's entries of these kinds: ``verbatim``, ``template``, ``control``, ``claim``."""
    return [entry for entry in plan() if entry.kind in kinds]
