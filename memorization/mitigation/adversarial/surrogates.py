"""Surrogates: what a memorized caption shall give instead, made by the model itself with the memory pruned away.

"Finding Dori" (arXiv 2507.16880) trains towards images that the pruned model draws from the original caption: of like
meaning, other pixels. A surrogate that still is the copy would be memorized anew, so each is compared with the images
of *all* suspects (templates share a layout, and pruning one memory may let another one out) and refused when it
resembles any; with a reward it is also refused when it says less of the caption than the model's own drawing.

Pruned by NeMo's value neurons (:mod:`.nemo`), the union over all suspects (a caption whose own neurons are off brings
out other memories), at a falling threshold until enough candidates pass; or by a mitigation the user gives. Which
pruned model the authors took could not be verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.images import load_image
from diffkit.seeds import item_seed
from memorization.copies import CopyDetector
from memorization.generation import Sampling, generate
from memorization.mitigation import nemo
from memorization.mitigation.layers import blocked, matching, union, value_layers
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = [
    "THETAS",
    "Acceptance",
    "Pruning",
    "Surrogates",
    "load_surrogates",
    "make_surrogates",
    "nemo_masks",
    "save_surrogates",
]

#: z-scores above which a neuron is switched off, from the mildest pruning to the harshest.
THETAS = (3.0, 2.0, 1.5, 1.0, 0.75)

#: How hard to prune, from 0 on -> the block in which the model is pruned, or None when nothing is harder.
Pruning = Callable[[int], AbstractContextManager[object] | None]


class Acceptance(NamedTuple):
    """When a candidate may serve.

    Attributes:
        copies: the copy detector.
        references: (R, 3, H, W) images of all suspects.
        similarity: a candidate this much like any reference, or more, is refused.
        score: (images, captions) -> (n,) alignment with the caption, or None: then only copies are refused.
        drop: how far a candidate's score may lie under that of the unpruned model's drawing.
    """

    copies: CopyDetector
    references: Tensor
    similarity: float
    score: Callable[[Tensor, Sequence[str]], Tensor] | None = None
    drop: float = 0.02


class Surrogates(NamedTuple):
    """(n, 3, H, W) accepted images of one suspect, each one's largest similarity, and how many were refused."""

    images: Tensor
    similarity: Tensor
    copies: int
    off_topic: int


def nemo_masks(pipe: Pipeline, suspects: Sequence[Suspect], ordinary: Sequence[str]) -> Pruning:
    """The neurons of any suspect's caption, against ordinary captions, at the thresholds of :data:`THETAS`."""
    layers = matching(pipe, value_layers(pipe))
    known = nemo.statistics(pipe, layers, ordinary)
    found = nemo.activations(pipe, layers, encoded(pipe, [suspect.caption for suspect in suspects]))
    rows = [dict(zip(layers, row, strict=True)) for row in zip(*found.values(), strict=True)]

    def pruned(hardness: int) -> AbstractContextManager[object] | None:
        if hardness >= len(THETAS):
            return None
        return blocked(layers, union([nemo.select(row, known, theta=THETAS[hardness]) for row in rows]))

    return pruned


def make_surrogates(
    pipe: Pipeline,
    suspects: Sequence[Suspect],
    pruned: Pruning,
    accept: Acceptance,
    *,
    n: int,
    sampling: Sampling,
    seed: int,
    skip: Sequence[str] = (),
) -> Iterator[tuple[Suspect, Surrogates]]:
    """Yield every suspect that is not in ``skip`` with up to ``n`` surrogates; none where all candidates fail.

    At each hardness ``n`` candidates are drawn, each with a seed of its own suspect, until ``n`` are accepted.
    """
    negative = empty_text(pipe)
    for suspect in suspects:
        if suspect.id in skip:
            continue
        embeds = encoded(pipe, [suspect.caption]).expand(n)
        seeds = [item_seed(seed, suspect.id, "surrogate", i) for i in range(n)]
        floor = None
        if accept.score is not None:
            own = generate(pipe, embeds, negative, seeds, sampling=sampling).images
            floor = float(accept.score(own, [suspect.caption] * n).median()) - accept.drop
        found = Surrogates(torch.empty(0, *accept.references.shape[1:]), torch.empty(0), 0, 0)
        hardness = 0
        while len(found.images) < n and (block := pruned(hardness)) is not None:
            with block:
                made = generate(pipe, embeds, negative, seeds, sampling=sampling).images
            found = _accepted(found, made, suspect.caption, accept, floor)
            hardness += 1
        yield suspect, found._replace(images=found.images[:n], similarity=found.similarity[:n])


def _accepted(found: Surrogates, made: Tensor, caption: str, accept: Acceptance, floor: float | None) -> Surrogates:
    """``found`` with those of ``made`` that may serve; NaN similarity or score never may."""
    likeness = accept.copies.similarity(made, accept.references).amax(1)
    other = likeness < accept.similarity
    fitting = torch.ones_like(other)
    if accept.score is not None and floor is not None:
        fitting = accept.score(made, [caption] * len(made)) >= floor
    both = other & fitting
    return Surrogates(
        torch.cat([found.images, made[both]]),
        torch.cat([found.similarity, likeness[both]]),
        found.copies + int((~other).sum()),
        found.off_topic + int((other & ~fitting).sum()),
    )


def save_surrogates(run: Run, suspect: Suspect, made: Surrogates) -> None:
    """The pictures, then the journal line that says they are there."""
    files = [run.save_image(f"surrogate-{suspect.id}-{i}", image) for i, image in enumerate(made.images)]
    item = {"files": files, "similarity": [round(float(s), 5) for s in made.similarity]}
    run.write(f"surrogates:{suspect.id}", {**item, "refused copies": made.copies, "off topic": made.off_topic})


def load_surrogates(run: Run, suspects: Sequence[Suspect]) -> list[Tensor | None]:
    """Every suspect's (n, 3, H, W) surrogates as the run's pictures hold them; None where none was accepted.

    Read back even by the process that made them, so that a resumed run trains on the same numbers.
    """
    rows = [run.done[f"surrogates:{suspect.id}"]["files"] for suspect in suspects]
    return [torch.stack([load_image(run.path(name)) for name in row]) if row else None for row in rows]
