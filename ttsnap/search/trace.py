"""What a search sees and finds: looks at candidates, the trace of them, winners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from PIL.Image import Image
from torch import Tensor

from diffkit.parallel import interleave
from diffkit.segments import Candidate
from ttsnap.search.noise import Recipe

__all__ = ["Look", "StageTrace", "Winner", "merged_looks", "winner_of"]


@dataclass(frozen=True)
class StageTrace:
    """What one look at the candidates of one prompt saw and decided.

    Attributes:
        prompt: index of the prompt.
        step: index of the step after which the look came; the last step for the final scores.
        sigma: noise level, noise over signal, of the latents that went into that step; None where the scheduler is not
            known, with which only whole images are tried.
        candidates: indices of the candidates looked at.
        seeds: their seeds, None for a generator of the user's that was not fresh.
        scores: their scores, None where the image could not be scored.
        reasons: candidate -> why it could not be scored, so that it is dropped; or that the safety checker flagged its
            finished image, so that any other is taken before it.
        survivors: indices of the candidates that went on; of the winners, best first, in the final look.
        previews: the decoded estimates, one for each candidate, when asked for.
        lookahead: denoiser calls of each candidate that led from its latents to the estimate that was scored; 0 for the
            estimate x0 of the step itself, and for finished images.
        similarities: with a copy guard, each candidate's highest similarity to a forbidden picture, None where it is
            not known. Candidates that the guard drops have no score; ``reasons`` says which picture they are like.
        held_out: in a prompt's last look, held-out reward -> winner -> score, None where it could not be scored.
    """

    prompt: int
    step: int
    sigma: float | None
    candidates: list[int]
    seeds: list[int | None]
    scores: list[float | None]
    survivors: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    previews: list[Image] = field(default_factory=list)
    lookahead: int = 0
    similarities: list[float | None] = field(default_factory=list)
    held_out: dict[str, dict[int, float | None]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Everything but the previews, and what only some searches have only where it is there, ready for JSON."""
        rare = ("lookahead", "similarities", "held_out")
        left_out = {"previews", *(name for name in rare if not getattr(self, name))}
        plain = {name: value for name, value in vars(self).items() if name not in left_out}
        if self.held_out:
            plain["held_out"] = {
                name: {str(index): score for index, score in scores.items()} for name, scores in self.held_out.items()
            }
        return {**plain, "reasons": {str(index): reason for index, reason in self.reasons.items()}}


class Winner(NamedTuple):
    """A finished candidate: its image (3, H, W) float32 in [0, 1] on the host, its score, and how to make it again.

    Of a pipeline of videos ``image`` is its video, (frames, 3, H, W).

    ``recipe`` is None when the seed alone, given to the stock pipeline, does. A ``flagged`` image is one that the
    pipeline's safety checker would blacken; its score is that of the image itself. ``similarity`` is the highest to a
    forbidden picture, None without a copy guard; ``held_out`` the held-out rewards' scores, None without any.
    """

    candidate: Candidate
    image: Tensor
    score: float
    recipe: Recipe | None = None
    flagged: bool = False
    similarity: float | None = None
    held_out: Mapping[str, float] | None = None


class Look(NamedTuple):
    """Scores of candidates, NaN where there is none and why; previews and images, by row, of those that are kept.

    ``flagged`` tells whose finished image the safety checker flags, ``lookahead`` by how many calls it looked ahead,
    ``similarities`` what a copy guard measured (empty without one).
    """

    scores: list[float]
    reasons: list[str | None]
    images: dict[int, Tensor]
    previews: list[Image]
    flagged: list[bool]
    lookahead: int = 0
    similarities: Sequence[float] = ()

    @classmethod
    def joined(cls, looks: Sequence[Look]) -> Look:
        """One look from those of the processes, to which the candidates were dealt."""
        images = {
            row * len(looks) + process: image
            for process, look in enumerate(looks)
            for row, image in look.images.items()
        }
        return cls(
            interleave([look.scores for look in looks]),
            interleave([look.reasons for look in looks]),
            images,
            interleave([look.previews for look in looks]),
            interleave([look.flagged for look in looks]),
            similarities=interleave([look.similarities for look in looks]),
        )

    def followed_by(self, other: Look) -> Look:
        """This look and a later one as one look, at the candidates of both."""
        images = {len(self.scores) + row: image for row, image in other.images.items()}
        return self._replace(
            scores=[*self.scores, *other.scores],
            reasons=[*self.reasons, *other.reasons],
            images={**self.images, **images},
            previews=[*self.previews, *other.previews],
            flagged=[*self.flagged, *other.flagged],
            similarities=[*self.similarities, *other.similarities],
        )


def winner_of(alive: Sequence[Candidate], look: Look, row: int, recipe: Recipe | None = None) -> Winner:
    """A finished candidate whose image the look has kept."""
    similarity = look.similarities[row] if look.similarities else None
    return Winner(alive[row], look.images[row], look.scores[row], recipe, look.flagged[row], similarity)


def merged_looks(trace: Sequence[StageTrace], winners: Mapping[int, int]) -> list[StageTrace]:
    """One look for each prompt and step, its candidates by index, of a trace that looked at them one by one.

    Those that were looked at again survived a look; the winner survived the last one.

    Args:
        winners: prompt -> candidate.
    """
    places: dict[tuple[int, int], list[StageTrace]] = {}
    for look in trace:
        places.setdefault((look.step, look.prompt), []).append(look)
    merged: list[StageTrace] = []
    following: dict[int, list[int]] = {prompt: [winner] for prompt, winner in winners.items()}
    for _, looks in sorted(places.items(), reverse=True):
        survivors = following[looks[0].prompt]
        merged.append(_merged(looks, survivors))
        following[looks[0].prompt] = merged[-1].candidates
    return sorted(merged, key=lambda look: (look.step, look.prompt))


def _merged(looks: Sequence[StageTrace], survivors: Sequence[int]) -> StageTrace:
    """All candidates of looks of one prompt after the same step."""
    rows = [(index, look, row) for look in looks for row, index in enumerate(look.candidates)]
    rows.sort(key=lambda each: each[0])
    return replace(
        looks[0],
        candidates=[index for index, _, _ in rows],
        seeds=[look.seeds[row] for _, look, row in rows],
        scores=[look.scores[row] for _, look, row in rows],
        survivors=list(survivors),
        reasons={index: reason for look in looks for index, reason in look.reasons.items()},
        previews=[look.previews[row] for _, look, row in rows if look.previews],
        similarities=[look.similarities[row] for _, look, row in rows if look.similarities],
    )
