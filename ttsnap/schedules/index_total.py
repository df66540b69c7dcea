"""The index rule under one budget for all prompts of a search: the total is never exceeded.

At a fixed price (:class:`ttsnap.schedules.index_rule.IndexRule`) the mean cost is right on the prompts that the price
was fitted on, and some per cent off on others. Here the prompts share what they may cost together, and the price is
found while searching. In each round the prompts whose best candidate is worth most beyond their best finished image go
on, a tenth of those that want to. What every prompt needs to finish a first image is set aside. When none wants to go
on at the present price and something is left, the price falls; the search ends when nothing more can be paid.

This is the Lagrangian form of Weitzman's problem with a bound on the total cost: one price for all prompts, the lowest
at which the bound holds (Dumitriu, Tetali and Winkler 2003 for the index at a given price).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from ttsnap.schedules.index_rule import FINISHED, IndexRule, IndexState

__all__ = ["SharedBudget"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SHARE = 0.1  # of the prompts that want to go on, in one round
FALL = 0.85  # of the price, when none wants to
LOWEST = 1e-3  # price over the rule's own at which a search ends
SLACK = 1e-9  # relative, for rounding


@dataclass(eq=False)
class SharedBudget:
    """Which candidates to advance in searches that share a budget; changes as they go on.

    Attributes:
        rule: its price is the one to begin with, its limit what one prompt may cost.
        total: what the searches of one group may cost together, in finished candidates.
        groups: (R,) the group of each search, from 0: one for a call, one for each resampling of a replay.
        share: of a group's prompts that want to go on, how many do in one round; at least one.

    Raises:
        InputError: the total does not pay for one finished candidate of each prompt.

    Example:
        >>> from ttsnap.schedules.score_model import ScoreModel
        >>> from ttsnap.trajectories.read import load_tensor
        >>> rewards = load_tensor("lab", "lab-noise-aware")
        >>> model = ScoreModel.fit(rewards)
        >>> rule = IndexRule(model, model.costs(rewards.prices), price=0.01, limit=8.0)
        >>> SharedBudget(rule, total=12.0, groups=np.zeros(3, dtype=np.int64)).next(rule.begin(3))
        array([0, 0, 0])
    """

    rule: IndexRule
    total: float
    groups: Ints
    share: float = SHARE
    price: Floats = field(init=False)
    _chosen: Ints = field(init=False)
    _surplus: Floats = field(init=False)
    _stale: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        """Begin at the rule's price."""
        sizes = np.bincount(self.groups)
        need = float(sizes.max() * self.rule.rest[0])
        if self.total * (1 + SLACK) < need:
            raise InputError(
                f"A budget of {self.total:.4g} finished candidates for {sizes.max()} prompts does not pay for one of "
                f"each with its looks, which takes {need:.4g}."
            )
        self.price = np.full(len(sizes), self.rule.price)
        self._chosen, self._surplus = np.zeros(len(self.groups), dtype=np.int64), np.zeros(len(self.groups))
        self._stale = np.ones(len(self.groups), dtype=bool)

    def next(self, state: IndexState) -> Ints:
        """(R,) the candidate to advance by one stage in each search, -1 where it waits; all -1 at the end."""
        while True:
            count = len(self.price)
            reserve = self._reserve(state)
            unspent = np.asarray(self.total * (1 + SLACK) - np.bincount(self.groups, state.spent, count), np.float64)
            free = np.maximum(unspent - np.bincount(self.groups, reserve, count), 0.0)  # 0 after scores that failed
            self._refresh(state, reserve, free)
            going = self._going(state, reserve, free, unspent)
            active = np.bincount(self.groups[going], minlength=count) > 0
            payable = np.bincount(self.groups, self._surplus > -np.inf, count) > 0
            idle = ~active & payable & (self.price > LOWEST * self.rule.price)
            self.price[idle] *= FALL
            self._stale |= idle[self.groups]
            if len(going) or not idle.any():
                chosen = np.full(len(self.groups), FINISHED)
                chosen[going] = self._chosen[going]
                self._stale[going] = True
                return chosen

    def _reserve(self, state: IndexState) -> Floats:
        """(R,) what is set aside for the first finished image of each prompt."""
        return np.where(np.isfinite(state.best), 0.0, self.rule.rest[np.maximum(state.stage, 0).max(axis=1)])

    def _refresh(self, state: IndexState, reserve: Floats, free: Floats) -> None:
        """Choose anew where a search went on, the price fell, or what is left has become the bound."""
        left = free[self.groups] + reserve
        rows = np.flatnonzero(self._stale | (left < self.rule.rest[0]))
        price = np.where(np.isfinite(state.best[rows]), self.price[self.groups[rows]], self.rule.price)
        choice = self.rule.choose(state, rows, price=price, left=left[rows])
        self._chosen[rows], self._surplus[rows] = choice
        self._stale[rows] = False

    def _going(self, state: IndexState, reserve: Floats, free: Floats, unspent: Floats) -> Ints:
        """The searches that go on: those without a finished image, then the share with the highest surplus."""
        rows = np.flatnonzero(self._surplus > 0)
        rows = rows[np.lexsort((-self._surplus[rows], self.groups[rows]))]
        group = self.groups[rows]
        first = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(np.append(first, len(rows)))
        stage = state.stage[rows, self._chosen[rows]]
        cost = np.asarray(self.rule.costs)[stage]
        spared = np.maximum(reserve[rows] - self.rule.rest[stage + 1], 0.0)
        extra = cost - spared
        paid = (_running(extra, first, sizes) <= free[group] + SLACK) | (extra <= SLACK)
        paid &= _running(cost, first, sizes) <= unspent[group]
        rank = np.arange(len(rows)) - np.repeat(first, sizes)
        among = rank < np.maximum(1.0, self.share * np.repeat(sizes, sizes))
        return rows[paid & (among | np.isinf(self._surplus[rows]))]


def _running(values: Floats, first: Ints, sizes: Ints) -> Floats:
    """Sums up to each value within its group; ``first`` are the places where groups begin."""
    sums = np.cumsum(values)
    return np.asarray(sums - np.repeat(sums[first] - values[first], sizes))
