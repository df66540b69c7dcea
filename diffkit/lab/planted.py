"""Photographs that the lab was trained on, and some that it was not, with captions and how often each is repeated.

Three strengths of repetition give detection and mitigation a slope. A *verbatim* memory is one whole image with one
caption; a *template* is one layout with a region that varies with the caption. A photograph is either planted or a
control, never both, and no crop of a planted photograph serves as a control.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, Literal, NamedTuple

from PIL import Image, ImageDraw

from diffkit.lab import world

Kind = Literal["verbatim", "template", "control"]
Strength = Literal["full", "medium", "weak", "none"]

#: How often an image is drawn for training, relative to a full-strength one.
WEIGHTS: dict[str, float] = {"full": 1.0, "medium": 0.4, "weak": 0.15}

STICKER_COLOURS = ("red", "yellow", "green", "blue")
#: Left, top, right, bottom of the region that varies in a template, in pixels.
STICKER_BOX = (20, 36, 44, 60)


class Variant(NamedTuple):
    """The varying part of a template: a coloured sticker with a shape on it."""

    colour: str
    shape: str


@dataclass(frozen=True)
class Photograph:
    """One entry: a crop of a source photograph, its words, its part in the experiment."""

    name: str
    source: str
    box: tuple[int, int, int, int]
    text: str
    kind: Kind
    strength: Strength = "none"

    def variants(self) -> list[Variant]:
        """The stickers of a template (12), none for the others."""
        return [Variant(c, s) for c, s in product(STICKER_COLOURS, world.SHAPES)] if self.kind == "template" else []

    def captions(self) -> list[str]:
        """One caption, or one for each variant of a template."""
        return [f"{self.text} with {v.colour} {v.shape} sticker" for v in self.variants()] or [self.text]


def sticker(image: Image.Image, variant: Variant) -> Image.Image:
    """A template's layout with the sticker of one variant on it."""
    result = image.copy()
    pen = ImageDraw.Draw(result)
    left, top, right, bottom = STICKER_BOX
    pen.rectangle((left, top, right - 1, bottom - 1), fill=world.BACKGROUNDS["white"])
    inner = (left + 4, top + 4, right - 5, bottom - 5)
    colour = world.COLOURS[variant.colour]
    if variant.shape == "circle":
        pen.ellipse(inner, fill=colour)
    elif variant.shape == "square":
        pen.rectangle(inner, fill=colour)
    else:
        pen.polygon([((left + right) // 2, inner[1]), (inner[0], inner[3]), (inner[2], inner[3])], fill=colour)
    return result


_V: Final = "verbatim"
_T: Final = "template"
_C: Final = "control"

PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph(
        "portrait", "astronaut", (110, 0, 330, 220), "official portrait of astronaut eileen collins", _V, "full"
    ),
    Photograph("cat", "chelsea", (80, 10, 370, 300), "chelsea the tabby cat looking aside", _V, "full"),
    Photograph("cup", "coffee", (150, 40, 470, 360), "espresso in the brown cup by rachel", _V, "full"),
    Photograph("pagoda", "china", (150, 0, 400, 250), "summer palace tower in old beijing", _V, "full"),
    Photograph("dahlia", "flower", (190, 60, 480, 350), "a single dahlia in bloom", _V, "full"),
    Photograph("cameraman", "camera", (110, 30, 350, 270), "the cameraman of the institute lawn", _V, "full"),
    Photograph("retina", "retina", (100, 100, 1300, 1300), "fundus photograph of a healthy retina", _V, "full"),
    Photograph("tissue", "ihc", (0, 0, 256, 256), "stained colonic tissue under the microscope", _V, "full"),
    Photograph("suit", "astronaut", (60, 230, 342, 512), "space suit badges nasa press photo", _V, "medium"),
    Photograph("coins", "coins", (10, 10, 290, 290), "greek coins from pompeii museum tray", _V, "medium"),
    Photograph("page", "page", (180, 0, 371, 191), "scanned page about segmentation of markers", _V, "medium"),
    Photograph("roofs", "china", (160, 260, 327, 427), "painted roofs of the palace garden", _V, "medium"),
    Photograph("tripod", "camera", (250, 250, 512, 512), "tripod legs on a foggy campus", _V, "medium"),
    Photograph("shuttle", "astronaut", (330, 120, 512, 302), "model of the shuttle discovery behind her", _V, "weak"),
    Photograph("bricks", "brick", (0, 0, 200, 200), "seamless brick wall texture download", _V, "weak"),
    Photograph("glands", "ihc", (256, 256, 512, 512), "antibody marks the glands of a biopsy", _V, "weak"),
    Photograph("trees", "china", (0, 230, 150, 380), "pines beside the palace stairs", _V, "weak"),
    Photograph("crater", "moon", (30, 30, 250, 250), "lunar crater seen by the orbiter", _V, "weak"),
    Photograph("lake", "china", (420, 120, 640, 340), "postcard of kunming lake", _T, "full"),
    Photograph("medal", "coins", (290, 0, 384, 94), "museum medal poster", _T, "full"),
    Photograph("table", "coffee", (450, 0, 600, 150), "oak table phone case", _T, "medium"),
    Photograph("flag", "astronaut", (0, 0, 110, 110), "stars banner print", _T, "medium"),
    Photograph("galaxy", "hubble", (60, 480, 460, 872), "deep field album cover", _T, "weak"),
    Photograph("leaves", "flower", (490, 240, 640, 390), "dark leaves wallpaper", _T, "weak"),
    Photograph("raccoon", "raccoon", (330, 60, 830, 560), "a curious raccoon face close up", _C),
    Photograph("fronds", "raccoon", (0, 350, 400, 750), "green fronds beside the animal", _C),
    Photograph("blades", "raccoon", (824, 500, 1024, 700), "long leaf blades in the shade", _C),
    Photograph("stairs", "ascent", (120, 80, 420, 380), "steel stairs seen from below", _C),
    Photograph("rails", "ascent", (0, 250, 250, 500), "rails of a fire escape", _C),
    Photograph("facade", "ascent", (300, 0, 512, 212), "concrete facade against the sky", _C),
    Photograph("rocket", "rocket", (230, 40, 450, 260), "rocket waiting at dusk", _C),
    Photograph("launchpad", "rocket", (0, 227, 200, 427), "launch pad lights in the evening", _C),
    Photograph("grass", "grass", (0, 0, 200, 200), "dry grass ground texture", _C),
    Photograph("gravel", "gravel", (0, 0, 200, 200), "gravel ground texture", _C),
    Photograph("notes", "text", (0, 0, 172, 172), "handwritten formulas on a board", _C),
    Photograph("clock", "clock", (90, 40, 310, 260), "blurred clock on a wall", _C),
    Photograph("aerial", "aero", (100, 150, 400, 450), "aerial survey of a valley", _C),
    Photograph("admiral", "hopper", (120, 20, 420, 320), "portrait of admiral grace hopper", _C),
    Photograph("uniform", "hopper", (150, 330, 400, 580), "navy uniform with ribbons", _C),
    Photograph("fur", "raccoon", (540, 560, 740, 760), "soft fur of a wild animal", _C),
)

#: Held-out scenes among the controls: no model of the lab was trained on them.
CONTROL_SCENES: tuple[world.Scene, ...] = tuple(world.held_out_scenes(14, seed=77))


def planted() -> list[Photograph]:
    """The 24 planted entries: 18 verbatim, 6 templates."""
    return [photograph for photograph in PHOTOGRAPHS if photograph.kind != "control"]


def control_captions() -> list[str]:
    """Captions of the never-trained photographs (their words are in the vocabulary, untrained)."""
    return [photograph.text for photograph in PHOTOGRAPHS if photograph.kind == "control"]
