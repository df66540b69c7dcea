"""Held-out rewards: scored on the winners alone and never used to select, so that reward hacking shows.

A search that selects by a reward finds images that this reward likes, whether they are better or not. A reward that
took no part says which: where the one rises and the other does not, the first was hacked (Gao et al., "Scaling Laws for
Reward Model Overoptimization", 2023, arXiv 2210.10760).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite

import torch

from diffkit.errors import InputError
from diffkit.ledger import Ledger
from diffkit.rewards import load_reward
from diffkit.rewards.base import Reward, RewardLike, score_checked
from ttsnap.search.trace import StageTrace, Winner

__all__ = ["load_held_out", "score_held_out", "with_held_out"]


def load_held_out(rewards: RewardLike | Sequence[RewardLike] | None, reward: Reward) -> tuple[Reward, ...]:
    """The held-out rewards: one, several, or none.

    Args:
        reward: what the search selects by.

    Raises:
        InputError: no such reward, the reward that selects, or two of one name.
    """
    given = () if rewards is None else rewards if isinstance(rewards, list | tuple) else (rewards,)
    loaded = tuple(load_reward(each) for each in given)
    names = [each.name for each in loaded]
    if reward.name in names:
        raise InputError(f"The reward {reward.name!r} cannot be held out: the search selects by it; give another.")
    if len(set(names)) < len(names):
        raise InputError(f"Held-out rewards need different names, got {', '.join(names)}.")
    return loaded


def score_held_out(
    rewards: Sequence[Reward],
    winners: Sequence[Sequence[Winner]],
    prompts: Sequence[str],
    ledger: Ledger,
    device: torch.device,
) -> list[list[Winner]]:
    """The winners of each prompt with the held-out rewards' scores, NaN where one cannot score an image.

    Args:
        device: of the images that the rewards get.
    """
    scored = [list(best) for best in winners]
    with ledger.clock("held_out"):
        for best in filter(None, scored):
            images = torch.stack([winner.image for winner in best]).to(device)
            texts = [prompts[winner.candidate.prompt] for winner in best]
            columns = {reward.name: score_checked(reward, images, texts).values.tolist() for reward in rewards}
            best[:] = [
                winner._replace(held_out={name: values[row] for name, values in columns.items()})
                for row, winner in enumerate(best)
            ]
    return scored


def with_held_out(trace: Sequence[StageTrace], winners: Sequence[Sequence[Winner]]) -> list[StageTrace]:
    """The trace with the held-out scores of each prompt's winners in the prompt's last look."""
    last = {look.prompt: place for place, look in enumerate(trace)}
    noted = list(trace)
    for best in filter(None, winners):
        place = last[best[0].candidate.prompt]
        scores: dict[str, dict[int, float | None]] = {}
        for winner in best:
            for name, value in (winner.held_out or {}).items():
                scores.setdefault(name, {})[winner.candidate.index] = value if isfinite(value) else None
        noted[place] = replace(noted[place], held_out=scores)
    return noted
