"""Several rewards as one: each in units of its own spread, or by ranks and fronts among the images of one prompt.

Rewards differ in scale a hundredfold (across images of a prompt HPS spreads by about 0.02, PickScore by about 1), so a
plain sum is one reward alone. Two ways out:

- With known spreads the ensemble is a reward like any other, ``score = sum of reward / spread``: a z-score whose mean,
  which cannot change an order, is left out. An image's score does not depend on the others.
- :meth:`Ensemble.utilities` compares the images of each prompt with one another, by the rules of
  :mod:`diffkit.rewards.combine`: rank sum (TTSnap's), z-score with spreads of these very images, or Pareto fronts. Such
  a number means nothing outside of that comparison, so it is no ``score``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.base import RewardLike, score_checked
from diffkit.rewards.combine import COMBINE, Combine

__all__ = ["Ensemble", "load"]


class Ensemble:
    """Several rewards; higher is better, whichever way the single ones point.

    Args:
        rewards: two or more, by name or as objects, of different names.
        spreads: what counts as one unit of each, such as its standard deviation over images; None when the ensemble
            is only to compare (:meth:`utilities`).

    Attributes:
        range: unbounded.
        flops_per_image: the sum, None when one is unknown.

    Raises:
        InputError: fewer than two rewards, a name twice, or a spread that is not a positive number.
    """

    higher_is_better = True
    range = (-math.inf, math.inf)

    def __init__(self, rewards: Sequence[RewardLike], spreads: Sequence[float] | None = None) -> None:
        self.rewards = [load_reward(reward) for reward in rewards]
        names = [reward.name for reward in self.rewards]
        if len(names) < 2 or len(set(names)) < len(names):
            raise InputError(
                f"An ensemble takes two or more rewards of different names, got {', '.join(names) or 'none'}."
            )
        if spreads is not None and (len(spreads) != len(names) or not all(0 < spread < math.inf for spread in spreads)):
            raise InputError(f"Expected a positive spread for each of {', '.join(names)}, got {list(spreads)}.")
        self.spreads = None if spreads is None else tuple(float(spread) for spread in spreads)
        units = [""] * len(names) if self.spreads is None else [f"={spread:g}" for spread in self.spreads]
        self.name = "ensemble:" + "+".join(name + unit for name, unit in zip(names, units, strict=True))
        flops = [reward.flops_per_image for reward in self.rewards]
        self.flops_per_image: float | None = None if None in flops else sum(cost for cost in flops if cost is not None)

    @property
    def reads_prompts(self) -> bool:
        """Whether one of them does."""
        return any(getattr(reward, "reads_prompts", False) for reward in self.rewards)

    @property
    def licence(self) -> str:
        """Of each reward that states one."""
        licences = {reward.name: str(getattr(reward, "licence", "not stated")) for reward in self.rewards}
        return "; ".join(f"{name}: {licence}" for name, licence in licences.items())

    def score_each(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B, K) float32 of images (B, 3, H, W) in [0, 1], higher is better: those that point down are negated.

        NaN where a reward cannot score an image.
        """
        columns = [
            score_checked(reward, images, prompts).values * (1 if reward.higher_is_better else -1)
            for reward in self.rewards
        ]
        return torch.stack(columns, dim=-1)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32: the sum of the rewards in units of their spreads; NaN where one cannot score.

        Raises:
            InputError: the ensemble has no spreads.
        """
        if self.spreads is None:
            raise InputError(
                f"{self.name} has no spreads, so it can only compare images with one another (utilities); give "
                "spreads, such as ensemble:pick-score=1+hps-v2.1=0.02."
            )
        return (self.score_each(images, prompts) / torch.tensor(self.spreads)).sum(-1)

    def utilities(self, images: Tensor, prompts: Sequence[str], rule: Combine = "rank") -> Tensor:
        """Utilities (B,) float64 that order the images of each prompt among themselves; higher is better.

        Args:
            images: (B, 3, H, W) in [0, 1]; all candidates of a prompt in one call.
            rule: ``rank``, ``zscore`` or ``pareto``; see :mod:`diffkit.rewards.combine`.

        Returns:
            Minus infinity where a reward could not score the image.

        Raises:
            InputError: an unknown rule.
        """
        if rule not in COMBINE:
            raise InputError(f"Expected a rule among {', '.join(COMBINE)}, got {rule!r}.")
        scores = self.score_each(images, prompts).double().numpy()
        utilities = np.empty(len(scores))
        for prompt in dict.fromkeys(prompts):
            rows = [row for row, other in enumerate(prompts) if other == prompt]
            utilities[rows] = COMBINE[rule](scores[rows])
        return torch.from_numpy(utilities)


def load(location: str = "") -> Ensemble:
    """An ensemble from text: ``ensemble:pick-score=1+hps-v2.1=0.02``, each reward with its spread.

    Args:
        location: the rewards with their spreads, joined by ``+``; rewards from a folder are joined in Python.

    Raises:
        InputError: another form, or an unknown reward.
    """
    parts = [part.partition("=") for part in location.split("+")]
    try:
        spreads = [float(spread) for _, _, spread in parts]
    except ValueError:
        raise InputError(
            f"Expected rewards with their spreads, such as ensemble:pick-score=1+hps-v2.1=0.02, got {location!r}."
        ) from None
    return Ensemble([name for name, _, _ in parts], spreads)
