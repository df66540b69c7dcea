"""Pandora's index rule: always advance the candidate with the highest index, one stage at a time.

A candidate is a chain of estimates of its final reward. Advancing it by a stage costs something and shows the next
estimate; a fresh seed can be opened at any time; one finished image is taken at the end. With a price on each unit of
cost every candidate has an index, the final reward in hand at which one is indifferent between stopping and going on
with it, and it is optimal to advance the highest index until it belongs to a finished image (Weitzman 1979; for Markov
chains see Dumitriu, Tetali and Winkler 2003). For a Gaussian martingale the index is the posterior mean plus an offset
that depends on the stage and on price over spread only.

What that needs is the prompt's own scale: the mean of its scores at every stage, and their spread. Guessed before the
search it loses to best-of-N; here it is learned while searching. Across prompts the stage means are jointly Gaussian,
so each new score updates them by Kalman's formula through the score's innovation, its part that the candidate's earlier
scores did not foretell; the spread is the prior's and the squared normalised innovations' mean. What is not sure about
the scale counts in favour of going on: ``caution`` standard deviations of it are added to each index.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from ttsnap.schedules.score_model import ScoreModel, price_table

__all__ = ["Choice", "IndexRule", "IndexState"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FINISHED, FAILED = -1, -2  # in place of a candidate: nothing more to do; in place of a stage: the score was NaN


@dataclass
class IndexState:
    """What is known in R searches (prompts), each with room for C candidates. Changed by ``IndexRule.observe`` only.

    Attributes:
        stage: (R, C) stages that a candidate has passed, 0 for a fresh one, K when finished; -2 when it failed.
        standing: (R, C) what its scores say of its final reward, apart from the prompt's means.
        scores: (R, C, K) its scores, NaN where it has none.
        opened: (R,) candidates opened; the next fresh one has this index.
        spent: (R,) cost so far, in finished candidates.
        mean, cov: (R, K), (R, K, K) posterior of the prompt's mean score at each stage.
        squares, count: (R,) sum and number of normalised squared innovations, the prior's included.
        best: (R,) highest final reward so far, -inf before the first.
    """

    stage: Ints
    standing: Floats
    scores: Floats
    opened: Ints
    spent: Floats
    mean: Floats
    cov: Floats
    squares: Floats
    count: Floats
    best: Floats

    @property
    def spread(self) -> Floats:
        """(R,) the prompts' spread over the typical prompt's."""
        return np.asarray(np.sqrt(self.squares / self.count))


class Choice(NamedTuple):
    """What the rule would do next in R searches.

    Attributes:
        candidate: (R,) that of the highest index.
        surplus: (R,) its index less the highest final reward so far, in units of the reward: above 0 it is worth its
            price; inf before anything was finished, -inf where nothing can be paid.
    """

    candidate: Ints
    surplus: Floats


@dataclass(frozen=True, eq=False)
class IndexRule:
    """When to stop, and which candidate to advance.

    Attributes:
        model: how scores and final rewards hang together, within prompts and across them.
        costs: (K,) cost of each stage in finished candidates, see :meth:`ScoreModel.costs`.
        price: reward that a finished candidate's cost must be worth; it sets the mean cost.
        limit: cost that no prompt may exceed, in finished candidates.
        caution: standard deviations of the prompt's unsure scale that are added to an index.
        spend_all: go on until the limit instead of stopping when the price is no longer worth paying.

    Raises:
        InputError: a price, limit or cost that is not positive, or a limit that does not pay for one candidate.

    Example:
        >>> from ttsnap.trajectories.read import load_tensor
        >>> rewards = load_tensor("lab", "lab-noise-aware")  # recorded, in place of a search
        >>> model = ScoreModel.fit(rewards)
        >>> scores = np.concatenate([rewards.looks[0][:, list(model.steps)], rewards.final[0][:, None]], axis=1)
        >>> rule = IndexRule(model, model.costs(rewards.prices), price=0.01, limit=8.0)
        >>> state = rule.begin(1)
        >>> while (candidate := rule.next(state)[0]) >= 0:
        ...     stage = state.stage[0, candidate]
        ...     rule.observe(state, np.array([0]), np.array([candidate]), scores[candidate, [stage]])
        >>> bool(state.spent[0] <= 8.0), bool(np.isfinite(state.best[0]))
        (True, True)
    """

    model: ScoreModel
    costs: Floats
    price: float
    limit: float
    caution: float = 4.0
    spend_all: bool = False
    _table: tuple[Floats, Floats] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not (self.price > 0 and (np.asarray(self.costs) > 0).all()):
            raise InputError("An index rule needs positive prices and costs.")
        if self.limit < self.rest[0] * (1 - 1e-9):
            raise InputError(
                f"A limit of {self.limit:.3g} does not pay for one candidate, which costs {self.rest[0]:.3g}."
            )

    @cached_property
    def rest(self) -> Floats:
        """(K + 1,) cost of finishing a candidate that has passed 0 to K stages."""
        return np.append(np.cumsum(np.asarray(self.costs)[::-1])[::-1], 0.0)

    @cached_property
    def table(self) -> tuple[Floats, Floats]:
        """Log prices and the offsets (prices, K + 1) at a spread of 1; rules of one model and costs may share it."""
        return price_table(self.model, self.costs) if self._table is None else self._table

    def capacity(self) -> int:
        """The most candidates that can be opened within the limit."""
        return 1 + int((self.limit - self.rest[0]) / self.costs[0] + 1e-9)

    def begin(
        self, searches: int, *, known: tuple[Floats, Floats] | None = None, pool: int | None = None
    ) -> IndexState:
        """The state before anything was scored.

        Args:
            known: the prompts' true means (R, K) and spreads (R,), to see what learning them costs.
            pool: how many candidates there are; none or more than the limit pays for is no bound.
        """
        model = self.model
        room = self.capacity() if pool is None else min(pool, self.capacity())
        shape = (searches, room)
        state = IndexState(
            stage=np.zeros(shape, dtype=np.int64),
            standing=np.zeros(shape),
            scores=np.full((*shape, model.stages), np.nan),
            opened=np.zeros(searches, dtype=np.int64),
            spent=np.zeros(searches),
            mean=np.tile(model.mean, (searches, 1)),
            cov=np.tile(model.between, (searches, 1, 1)),
            squares=np.full(searches, model.dof),
            count=np.full(searches, model.dof),
            best=np.full(searches, -np.inf),
        )
        if known is not None:
            state.mean, state.cov = known[0].copy(), np.zeros_like(state.cov)
            state.count = np.full(searches, 1e12)
            state.squares = 1e12 * known[1] ** 2
        return state

    def next(self, state: IndexState) -> Ints:
        """(R,) the candidate to advance by one stage in each search; ``opened`` stands for a fresh one, -1 for the end.

        A stage is only begun when the limit also pays for finishing that candidate.
        """
        chosen, surplus = self.choose(state)
        return np.where(surplus > (-np.inf if self.spend_all else 0.0), chosen, FINISHED)

    def choose(
        self, state: IndexState, rows: Ints | slice = slice(None), *, price: Floats | None = None,
        left: Floats | None = None,
    ) -> Choice:  # fmt: skip
        """The candidate of the highest index in each search, and whether it is worth its price.

        Args:
            rows: of these searches only.
            price: of each, instead of the rule's own.
            left: what each may still spend, where that is less than its limit leaves.
        """
        spread = state.spread[rows][:, None]
        offsets = spread * self._offsets(spread[:, 0], self.price if price is None else price)
        to_mean = self.model.to_mean
        offsets += state.mean[rows] @ to_mean.T
        unsure = np.einsum("jk,rkl,jl->rj", to_mean, state.cov[rows], to_mean)
        offsets += self.caution * np.sqrt(np.maximum(unsure, 0.0))
        own = self.limit * (1 + 1e-9) - state.spent[rows]
        offsets[self.rest[None] > (own if left is None else np.minimum(own, left))[:, None]] = -np.inf
        offsets[:, -1] = -np.inf  # finished
        opened = state.opened[rows]
        width = min(int(opened.max(initial=0)) + 1, state.stage.shape[1])
        stage = state.stage[rows, :width]
        index = state.standing[rows, :width] + np.take_along_axis(offsets, np.maximum(stage, 0), axis=1)
        beyond = np.arange(width)[None] > opened[:, None]
        index[beyond | (stage == FAILED)] = -np.inf
        chosen = np.argmax(index, axis=1)
        top = np.take_along_axis(index, chosen[:, None], axis=1)[:, 0]
        payable = np.isfinite(top)
        return Choice(chosen, np.where(payable, np.where(payable, top, 0.0) - state.best[rows], -np.inf))

    def observe(self, state: IndexState, searches: Ints, candidates: Ints, scores: Floats) -> None:
        """Enter the scores of candidates that were advanced by one stage, at most one of each search; NaN drops one.

        The last stage's score is the final reward.
        """
        model = self.model
        stage = state.stage[searches, candidates]
        state.spent[searches] += np.asarray(self.costs)[stage]
        state.opened[searches] += candidates == state.opened[searches]
        failed = np.isnan(scores)
        state.stage[searches[failed], candidates[failed]] = FAILED
        rows, at, fresh, stage = searches[~failed], candidates[~failed], scores[~failed], stage[~failed]
        state.scores[rows, at, stage] = fresh
        history = np.nan_to_num(state.scores[rows, at])
        self._learn(state, rows, stage, history)
        state.stage[rows, at] = stage + 1
        state.standing[rows, at] = (model.to_final[stage + 1] * history).sum(axis=1)
        ended = stage + 1 == model.stages
        state.best[rows[ended]] = np.maximum(state.best[rows[ended]], fresh[ended])

    def _learn(self, state: IndexState, rows: Ints, stage: Ints, history: Floats) -> None:
        """Kalman's update of the prompt's means by the innovation of the newest score; its square tells the spread."""
        direction, noise = self.model.innovation[stage], self.model.noise[stage]
        spread = state.squares[rows] / state.count[rows]
        gain = np.einsum("rkl,rl->rk", state.cov[rows], direction)
        unsure = (direction * gain).sum(axis=1)
        error = (direction * (history - state.mean[rows])).sum(axis=1)
        total = unsure + noise * spread
        state.squares[rows] += spread * error**2 / total
        state.count[rows] += 1
        state.mean[rows] += gain * (error / total)[:, None]
        state.cov[rows] -= gain[:, :, None] * gain[:, None, :] / total[:, None, None]

    def _offsets(self, spread: Floats, price: float | Floats) -> Floats:
        """(R, K + 1) offsets in units of the spread: the price counts relative to it."""
        grid, table = self.table
        at = np.clip((np.log(price / spread) - grid[0]) / (grid[1] - grid[0]), 0.0, len(grid) - 1.000001)
        low = at.astype(np.int64)
        share = (at - low)[:, None]
        return np.asarray(table[low] * (1 - share) + table[low + 1] * share)
