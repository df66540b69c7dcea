"""The strategies of a comparison by name, and the rewards that they choose by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diffkit.errors import InputError
from diffkit.option_values import read_names
from diffkit.rewards import load_reward
from diffkit.rewards.base import EstimateReward, Reward, RewardLike
from ttsnap.noise_aware.reward import NoiseAwareReward
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.registry import load_search
from ttsnap.search.strategies.adaptive import AdaptiveSearch
from ttsnap.search.strategies.base import Strategy

__all__ = ["Contender", "PairedReward", "paired_reward", "read_contenders", "shares_budget"]


class Contender(NamedTuple):
    """A strategy with DDIM's share of noise; its label names it in the table."""

    label: str
    strategy: Strategy
    eta: float


def read_contenders(
    text: str,
    *,
    schedules: Mapping[str, PruningSchedule | None],
    eta: float = 0.0,
    index: str | Path | None = None,
) -> list[Contender]:
    """Read ``"best-of-n,ttsp,fk@1"``: names from :data:`ttsnap.search.registry.SEARCHES`, each with its own eta after
    an ``@``.

    Args:
        schedules: for the strategies that prune by one, by name; "" is for those that are not named, but for
            ``lookahead``, which has one of its own.
        eta: of those that name none; FK steering without one takes 1, as it needs noise.
        index: an index rule, for ``adaptive`` (the prompts of a group share one total), ``index`` (the budget holds
            for each prompt) and ``index-mean`` (on the mean over the prompts, by a fitted price).

    Raises:
        InputError: an unknown name, none at all, the same twice, or an eta outside [0, 1].
    """
    contenders = []
    for label in read_names(text):
        name, at, share = label.partition("@")
        try:
            own = float(share) if at else (1.0 if name == "fk" and eta == 0 else eta)
        except ValueError:
            raise InputError(f"Cannot read the search {label!r}; write a name, or name@eta as in fk@1.") from None
        if not 0 <= own <= 1:
            raise InputError(f"eta must lie in [0, 1], got {own:g} for {label!r}.")
        schedule = schedules.get(name, None if name == "lookahead" else schedules.get(""))
        contenders.append(Contender(label, load_search(name, schedule, index=index), own))
    labels = [contender.label for contender in contenders]
    if not contenders or len(set(labels)) < len(labels):
        raise InputError(f"--searches takes different names separated by commas, got {text!r}.")
    return contenders


def shares_budget(contender: Contender) -> bool:
    """Whether the prompts of a group share one total, so that the group is part of the result."""
    return isinstance(contender.strategy, AdaptiveSearch)


def paired_reward(reward: RewardLike, noise_aware: EstimateReward | str | Path | None = None) -> Reward:
    """The reward of finished images, paired with one of estimates where that is given.

    Args:
        noise_aware: a noise-aware reward, its registered name, or a folder that ``distill`` wrote.

    Raises:
        InputError: no such reward, or the second one is not noise-aware.
    """
    plain = load_reward(reward)
    if noise_aware is None:
        return plain
    if isinstance(noise_aware, str | Path) and Path(noise_aware).is_dir():
        return PairedReward(plain, NoiseAwareReward.from_pretrained(Path(noise_aware)))
    aware = load_reward(str(noise_aware) if isinstance(noise_aware, Path) else noise_aware)
    if not isinstance(aware, EstimateReward):
        raise InputError(f"The reward {str(noise_aware)!r} does not know noise levels; give another, or none.")
    return PairedReward(plain, aware)


class PairedReward:
    """A plain reward for finished images, and a noise-aware one for estimates."""

    def __init__(self, reward: Reward, aware: EstimateReward) -> None:
        if reward.higher_is_better != aware.higher_is_better:
            raise InputError(f"The rewards {reward.name!r} and {aware.name!r} point in opposite directions.")
        self.reward, self.aware = reward, aware
        self.name, self.higher_is_better, self.range = reward.name, reward.higher_is_better, reward.range
        costs = [each.flops_per_image for each in (reward, aware)]
        self.flops_per_image = None if None in costs else max(cost for cost in costs if cost is not None)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The plain reward's scores."""
        return self.reward.score(images, prompts)

    def score_estimates(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """The noise-aware reward's scores."""
        return self.aware.score_estimates(images, prompts, log_snr)
