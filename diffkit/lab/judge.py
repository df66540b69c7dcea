"""The mechanical judge: reads a scene back from pixels and says which parts of its caption hold.

Pixels are named by their nearest colour of the world, connected regions become blobs, a blob's shape is the ideal shape
it overlaps most. No model is involved: this is the truth that no reward sees.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from diffkit.lab.trio import Trio, parse_trio
from diffkit.lab.world import BACKGROUNDS, COLOURS, RELATIONS, Scene, Thing, parse

_PALETTE = torch.tensor(list(COLOURS.values()) + list(BACKGROUNDS.values()), dtype=torch.float32) / 255
_NAMES = list(COLOURS) + list(BACKGROUNDS)


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
    blobs = []
    for index, colour in enumerate(COLOURS):
        same = labels == index
        core = ndimage.binary_opening(same, structure=np.ones((3, 3)))
        regions, count = ndimage.label(ndimage.binary_dilation(core, iterations=3, mask=same))  # corners back on
        for region in range(1, count + 1):
            mask = regions == region
            if mask.sum() >= 40:
                cy, cx = ndimage.center_of_mass(mask)
                blobs.append(_Blob(colour, mask, (cx, cy), _shape_fits(mask)))
    return blobs


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


def check(image: Tensor, scene: Scene | Trio | str) -> Judgement:
    """Judge which parts of a caption an image shows, by colour segmentation and shape overlap.

    Args:
        image: (3, 64, 64) in [0, 1].
        scene: the scene of two or three things, or its caption.

    Returns:
        A :class:`Judgement`. A relation holds when the step between the two things lies within 45 degrees of its
        axis; ``nothing_else`` when no blob of an object colour (40 pixels or more) is there beside those that stand
        for the named things; a wrong-coloured thing stands for none. Of a trio a part holds when it does in both of
        its clauses.

    Raises:
        ValueError: the caption is of neither form.
    """
    if isinstance(scene, str):
        scene = parse_trio(scene) or parse(scene)
    pixels = image.detach().float().cpu().permute(1, 2, 0).reshape(-1, 3)
    labels = torch.cdist(pixels, _PALETTE).argmin(1).reshape(image.shape[1:]).numpy()
    blobs = _blobs(labels)
    if isinstance(scene, Scene):
        return _judge(scene, labels, blobs, more=0)
    first, second = (_judge(clause, labels, blobs, more=1) for clause in scene.clauses)
    subject, thing, relation, background, alone = (a and b for a, b in zip(first[:5], second[:5], strict=True))
    return Judgement(subject, thing, relation, background, alone, (first.score + second.score) / 2)


def _judge(scene: Scene, labels: np.ndarray, blobs: list[_Blob], *, more: int) -> Judgement:
    """One scene of two things in an image where as many as ``more`` other things may be."""
    subject, other = _best_pair(scene, blobs)
    ground = labels >= len(COLOURS)
    share = float((labels[ground] == _NAMES.index(scene.background)).mean()) if ground.any() else 0.0
    both = subject is not None and other is not None
    margin = _relation_margin(scene.relation, subject, other) if subject is not None and other is not None else 0.0
    extra = max(sum(blob is not subject and blob is not other for blob in blobs) - more, 0)
    grades = (
        0.5 * subject.fits[scene.subject.shape] + 0.5 * (subject.shape == scene.subject.shape) if subject else 0.0,
        0.5 * other.fits[scene.object.shape] + 0.5 * (other.shape == scene.object.shape) if other else 0.0,
        max(margin, 0.0) if both else 0.0,
        share,
        1.0 / (1 + extra),
    )
    return Judgement(
        subject=subject is not None and subject.shape == scene.subject.shape,
        object=other is not None and other.shape == scene.object.shape,
        relation=both and margin > 0.7071,
        background=share > 0.5,
        nothing_else=not extra,
        score=sum(grades) / len(grades),
    )
