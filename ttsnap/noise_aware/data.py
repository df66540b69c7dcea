"""The data of a distillation: split of prompts, targets, batches and losses, as functions of the seed alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffkit.errors import InputError
from ttsnap.trajectories.dataset import Trajectories

__all__ = [
    "TrainingBatch",
    "Estimates",
    "draw",
    "finals",
    "mse_loss",
    "preference_loss",
    "spread_within_prompts",
    "split_prompts",
    "standardised",
    "stream",
    "usable",
]

CACHE_BYTES = 2**31  # of decoded estimates held in memory
SPLIT, ORDER, LEVELS = 1, 2, 3  # what a random stream is for


def split_prompts(prompts: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Positions of the prompts to train on and of those held out. Equal texts stay on one side.

    Args:
        share: of the different texts, in [0, 1), that is held out; at least one of them unless it is 0.

    Raises:
        InputError: too few prompts for a split.
    """
    if not 0 <= share < 1:
        raise InputError(f"The share of held-out prompts must be at least 0 and below 1, got {share}.")
    texts = sorted(set(prompts))
    count = max(1, round(share * len(texts))) if share > 0 else 0
    if count >= len(texts):
        raise InputError(f"There are {len(texts)} different prompts, too few to hold {count} out; collect more.")
    chosen = np.random.default_rng((seed, SPLIT)).permutation(len(texts))[:count]
    apart = {texts[index] for index in chosen}
    train = [position for position, text in enumerate(prompts) if text not in apart]
    return train, [position for position, text in enumerate(prompts) if text in apart]


def finals(trajectories: Trajectories, name: str) -> NDArray[np.float64]:
    """The plain reward of every finished image, (P, N), in the reward's own direction; NaN where it has none.

    Raises:
        InputError: this reward was not recorded.
    """
    recorded = recorded_name(trajectories, name)
    return np.stack([trajectory.tensor(f"finals.{recorded}").double().numpy() for trajectory in trajectories])


def recorded_name(trajectories: Trajectories, name: str) -> str:
    """The name by which a reward was recorded: its own, or the text that loaded it, with its options.

    Raises:
        InputError: this reward was not recorded.
    """
    own = trajectories.record["provenance"].get("rewards", {})
    recorded = next((text for text in trajectories.names if name in (text, own.get(text))), None)
    if recorded is None:
        raise InputError(
            f"{trajectories.folder} holds the rewards {', '.join(trajectories.names)}, not {name!r}; collect with that "
            f"reward."
        )
    return recorded


def usable(trajectories: Trajectories, final: NDArray[np.float64], steps: Sequence[int]) -> NDArray[np.bool_]:
    """Which images (P, N) can be trained on: those with a final score, none of whose estimates at ``steps`` was broken.

    Args:
        final: as :func:`finals` returns it.
        steps: recorded steps.
    """
    columns = [trajectories.steps.index(step) for step in steps]
    seen = [~trajectory.unseen[:, columns].any(1).numpy() for trajectory in trajectories]
    whole: NDArray[np.bool_] = np.isfinite(final) & np.stack(seen)
    return whole


def spread_within_prompts(scores: NDArray[np.float64]) -> float:
    """Standard deviation of scores (P, N) around their prompts' means, pooled over prompts; NaN is left out."""
    finite = np.isfinite(scores)
    counts = finite.sum(1)
    several = counts > 1
    if not several.any():
        return float("nan")
    rows = scores[several]
    deviations = rows - np.nanmean(rows, axis=1, keepdims=True)
    return float(np.sqrt(np.nansum(deviations**2) / (counts[several] - 1).sum()))


def standardised(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores (P, N) with every prompt brought to one mean and one spread, those of all of them; the unit is kept.

    What is left to learn is the ranking within a prompt. A prompt whose scores are all equal gets the common mean.
    """
    with np.errstate(invalid="ignore"):
        mean = np.nanmean(scores, axis=1, keepdims=True)
        deviation = np.nanstd(scores, axis=1, keepdims=True)
    units = np.divide(scores - mean, deviation, out=np.zeros_like(scores), where=deviation > 1e-12)
    units[~np.isfinite(scores)] = np.nan
    common: NDArray[np.float64] = np.nanmean(scores) + spread_within_prompts(scores) * units
    return common


@functools.lru_cache(maxsize=8)
def _order(seed: int, stage: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, ORDER, stage, epoch)).permutation(count)


def stream(seed: int, stage: int, step: int, take: int, count: int) -> list[int]:
    """The ``take`` items of one step out of ``count``: every item once an epoch, in an order of that epoch's own."""
    places = range(step * take, (step + 1) * take)
    return [int(_order(seed, stage, place // count, count)[place % count]) for place in places]


class TrainingBatch(NamedTuple):
    """Rows of one training step: (prompt's position, candidate, level) and the unit each belongs to."""

    rows: list[tuple[int, int, int]]
    units: list[int]


def draw(
    units: Sequence[Sequence[tuple[int, int]]],
    opened: Sequence[int],
    *,
    size: int,
    seed: int,
    stage: int,
    step: int,
    part: slice = slice(None),
) -> TrainingBatch:
    """The batch of one step, a function of (seed, stage, step) alone.

    Args:
        units: what is drawn: groups of (prompt's position, candidate), of one image each for a loss on single images,
            of all of a prompt's for a loss on pairs.
        opened: levels the stage trains; they are spread evenly over the batch's units, one level a unit.
        size: units in the batch.
        part: which of them are wanted: the share of one process, or a micro-batch.
    """
    chosen = stream(seed, stage, step, size, len(units))
    turn = np.random.default_rng((seed, LEVELS, stage, step)).permutation(len(opened))
    rows, members = [], []
    for place in range(size)[part]:
        level = opened[turn[place % len(opened)]]
        for prompt, candidate in units[chosen[place]]:
            rows.append((prompt, candidate, level))
            members.append(place)
    return TrainingBatch(rows, members)


class Estimates:
    """Decoded estimates as uint8, read when they are first needed, and kept while there is room.

    Args:
        trajectories: with previews.
        steps: the recorded step of every level.
    """

    def __init__(self, trajectories: Trajectories, steps: Sequence[int], room: int = CACHE_BYTES) -> None:
        self.trajectories, self.steps, self.room = trajectories, list(steps), room
        self._kept: dict[tuple[int, int], Tensor] = {}

    def of(self, prompt: int, level: int) -> Tensor:
        """All candidates of one prompt at one level: (N, 3, H, W) uint8."""
        kept = self._kept.get((prompt, level))
        if kept is not None:
            return kept
        images = (self.trajectories[prompt].estimates(self.steps[level]) * 255).round().to(torch.uint8)
        while self._kept and (len(self._kept) + 1) * images.numel() > self.room:
            self._kept.pop(next(iter(self._kept)))
        self._kept[prompt, level] = images
        return images

    def gather(self, rows: Sequence[tuple[int, int, int]]) -> Tensor:
        """The images of rows (prompt's position, candidate, level): (B, 3, H, W) float32 in [0, 1]."""
        return torch.stack([self.of(prompt, level)[candidate] for prompt, candidate, level in rows]).float() / 255


def mse_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of scores (B,) and targets (B,), a scalar."""
    return F.mse_loss(scores, targets)


def preference_loss(scores: Tensor, targets: Tensor, units: Tensor, *, temperature: float, soft: bool = True) -> Tensor:
    """Bradley-Terry cross-entropy over all pairs of rows of one unit, a scalar; 0 where there is no pair.

    The predicted probability that i beats j is sigmoid((scores_i - scores_j) / temperature). The label is the same
    function of the targets, or, hard, 1 for the better one; a tie is one half when soft and no pair when hard.

    Args:
        scores: (B,) with gradient.
        targets: (B,) plain rewards of the finished images.
        units: (B,) integers; only rows of the same unit, a prompt at one level, are compared.
        temperature: in the reward's unit, above 0.
    """
    first, second = torch.triu_indices(len(scores), len(scores), offset=1, device=scores.device)
    gap = targets[first] - targets[second]
    pair = units[first] == units[second] if soft else (units[first] == units[second]) & (gap != 0)
    if not bool(pair.any()):
        return scores.sum() * 0
    label = torch.sigmoid(gap[pair] / temperature) if soft else (gap[pair] > 0).float()
    return F.binary_cross_entropy_with_logits((scores[first] - scores[second])[pair] / temperature, label)
