"""How a prompt's scores at successive looks and the final reward hang together: a Gaussian chain with a hierarchy.

Within a prompt the scores of a candidate at K stages (looks, then the final reward) are Gaussian around the prompt's
stage means, with one covariance for all prompts up to the prompt's own spread; across prompts the stage means are
Gaussian, the spreads log-normal. All of it is estimated from a recorded reward tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.reward_tensor import RewardTensor

__all__ = ["INDEX_STEPS", "ScoreModel", "index_offsets", "price_table", "stage_scores"]

Floats = NDArray[np.float64]
INDEX_STEPS = (3, 5, 7, 9, 11, 14)
"""Looks of the index rule by default, of 20 calls; the best of the sets tried on the shared tensors."""
REACH = 8.0  # standard deviations of the final reward over which indices are computed
GRID = 801


@dataclass(frozen=True, eq=False)
class ScoreModel:
    """A Gaussian chain of K stages: the looks at ``steps``, then the final reward.

    Attributes:
        steps: (K - 1,) step indices of the looks, rising.
        calls: denoiser calls of one finished candidate.
        mean, between: (K,), (K, K) mean and covariance of the prompts' stage means.
        within: (K, K) covariance of a candidate's scores around them, of a prompt with the typical spread.
        dof: how many innovations the prior of a prompt's squared spread is worth.
        lookahead: (K - 1,) denoiser calls by which each look looks ahead; empty where all are 0.
    """

    steps: tuple[int, ...]
    calls: int
    mean: Floats
    between: Floats
    within: Floats
    dof: float
    lookahead: tuple[int, ...] = field(default=(), kw_only=True)

    @classmethod
    def fit(cls, tensor: RewardTensor, steps: Sequence[int] = INDEX_STEPS, lookahead: Sequence[int] = ()) -> ScoreModel:
        """Estimate it from prompts with many candidates; candidates with a missing score are left out.

        Args:
            lookahead: calls by which each look looks ahead; none for estimates x0 only.

        Raises:
            InputError: fewer than 2 prompts with 2 whole candidates, or scores that do not vary.
        """
        scores = stage_scores(tensor, list(zip(steps, lookahead or [0] * len(steps), strict=True)))
        whole = np.asarray(np.isfinite(scores).all(axis=-1))
        prompts = [rows[kept] for rows, kept in zip(scores, whole, strict=True) if kept.sum() >= 2]
        if len(prompts) < 2:
            raise InputError("A score model needs at least 2 prompts with 2 candidates scored at every look.")
        means = np.stack([rows.mean(axis=0) for rows in prompts])
        stages = scores.shape[-1]
        covs = np.stack([np.cov(rows.T).reshape(stages, stages) for rows in prompts])
        spreads = np.ones(len(prompts))
        within = covs.mean(axis=0)
        for _ in range(20):  # covariance of the prompts brought to one spread, and their spreads, in turn
            within = (covs / spreads[:, None, None]).mean(axis=0) + 1e-9 * np.trace(covs.mean(axis=0)) * np.eye(stages)
            if not np.isfinite(within).all() or np.linalg.matrix_rank(within) < stages:
                raise InputError("The scores do not vary, or one look repeats another; there is nothing to model.")
            spreads = np.maximum(np.einsum("pkl,lk->p", covs, np.linalg.inv(within)) / stages, 1e-6)
            spreads /= np.exp(np.log(spreads).mean())
        between = np.cov(means.T).reshape(stages, stages) + 1e-9 * np.diag(np.diag(within))
        dof = 1 + 2 / max(float(np.log(spreads).var()), 1e-3)
        return cls(tuple(int(step) for step in steps), tensor.calls, means.mean(axis=0), between, within, dof,
                   lookahead=tuple(lookahead) if any(lookahead) else ())  # fmt: skip

    @property
    def stages(self) -> int:
        """K."""
        return len(self.mean)

    @property
    def looks(self) -> list[tuple[int, int]]:
        """(step, calls ahead) of each look."""
        return list(zip(self.steps, self.lookahead or (0,) * len(self.steps), strict=True))

    @cached_property
    def innovation(self) -> Floats:
        """(K, K) rows: a score less what the candidate's earlier scores foretell of it."""
        rows = np.eye(self.stages)
        for stage in range(1, self.stages):
            rows[stage, :stage] = -np.linalg.solve(self.within[:stage, :stage], self.within[:stage, stage])
        return rows

    @cached_property
    def noise(self) -> Floats:
        """(K,) variance of the innovations."""
        return np.asarray(np.einsum("jk,kl,jl->j", self.innovation, self.within, self.innovation))

    @cached_property
    def to_final(self) -> Floats:
        """(K + 1, K) weights of the first 0 to K scores in the expected final reward."""
        rows = np.zeros((self.stages + 1, self.stages))
        for count in range(1, self.stages + 1):
            rows[count, :count] = np.linalg.solve(self.within[:count, :count], self.within[:count, -1])
        return rows

    @cached_property
    def to_mean(self) -> Floats:
        """(K + 1, K) weights of the prompt's stage means in it."""
        return np.asarray(np.eye(self.stages)[-1] - self.to_final)

    @cached_property
    def foretold(self) -> Floats:
        """(K + 1,) variance of the expected final reward after 0 to K scores."""
        return np.asarray(np.einsum("jk,kl,jl->j", self.to_final, self.within, self.to_final))

    def costs(self, prices: Prices) -> Floats:
        """(K,) cost of each stage, its calls and its look, in finished best-of-N candidates.

        Looks are decoded by a preview decoder where the prices have one.

        Raises:
            InputError: a price is unknown.
        """
        if prices.call is None or prices.decode is None or prices.verify is None:
            raise InputError("The index rule needs the prices of a call, a decoding and a verification.")
        bounds = np.array([0, *(step + 1 for step in self.steps), self.calls])
        calls = np.diff(bounds) + np.array([*(ahead for _, ahead in self.looks), 0])
        decodes = np.full(self.stages, prices.decode if prices.preview is None else prices.preview)
        decodes[-1] = prices.decode
        finished = self.calls * prices.call + prices.decode + prices.verify
        return np.asarray((calls * prices.call + decodes + prices.verify) / finished)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "steps": list(self.steps), "calls": self.calls, "mean": self.mean.tolist(),
            "between": self.between.tolist(), "within": self.within.tolist(), "dof": self.dof,
            **({"lookahead": list(self.lookahead)} if self.lookahead else {}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ScoreModel:
        """The inverse of :meth:`to_dict`."""
        mean, between, within = (np.array(content[name], dtype=np.float64) for name in ("mean", "between", "within"))
        return cls(tuple(content["steps"]), int(content["calls"]), mean, between, within, float(content["dof"]),
                   lookahead=tuple(content.get("lookahead", ())))  # fmt: skip


def stage_scores(tensor: RewardTensor, looks: Sequence[tuple[int, int]]) -> Floats:
    """(P, N, K) scores of looks, each a step and the calls by which it looks ahead, and the final rewards."""
    return np.stack([*(tensor.look(*look) for look in looks), tensor.final], axis=-1)


def index_offsets(foretold: Floats, costs: Floats, prices: Floats) -> Floats:
    """(G, K + 1) index less expected final reward after 0 to K stages, for each of G prices; 0 at the end.

    Backwards over the stages, on a grid of the expected reward's lead over the reward in hand: what going on is worth,
    at least 0 for stopping. The index is where it begins to be worth something. What is worth something is a piecewise
    linear function of the lead, a sum of hinges, and a hinge's Gaussian expectation has a closed form.

    Args:
        foretold: (K + 1,) variance of the expected final reward after 0 to K scores, rising.
        costs: (K,) of each stage.
        prices: (G,) reward that a unit of cost must be worth.
    """
    scale = float(np.sqrt(foretold[-1]))
    steps = np.sqrt(np.maximum(np.diff(foretold), 0.0)) / scale
    lead = np.linspace(-REACH, REACH, GRID)
    worth = np.repeat(np.maximum(lead, 0.0)[:, None], len(prices), axis=1)
    offsets = np.zeros((len(prices), len(foretold)))
    for stage in reversed(range(len(costs))):
        slopes = np.diff(worth, axis=0) / (lead[1] - lead[0])
        ends = np.zeros((1, len(prices)))
        bends = np.diff(np.concatenate([ends, slopes, ends + 1]), axis=0)
        value = _hinge(lead[:, None] - lead, steps[stage]) @ bends - prices / scale * costs[stage]
        for column in range(len(prices)):
            offsets[column, stage] = -_root(lead, value[:, column])
        worth = np.maximum(value, 0.0)
    return np.asarray(offsets * scale)


def _hinge(distance: Floats, deviation: float) -> Floats:
    """Expectation of (distance + deviation z)+ for standard normal z."""
    if deviation < 1e-9:
        return np.maximum(distance, 0.0)
    at = distance / deviation
    return np.asarray(deviation * (np.exp(-0.5 * at**2) / np.sqrt(2 * np.pi) + at * ndtr(at)))


def _root(lead: Floats, value: Floats) -> float:
    """Where a rising function leaves 0; an end of the grid when it does not there."""
    first = int(np.argmax(value > 0))
    if first == 0:
        return float(lead[0] if value[0] > 0 else lead[-1])
    return float(np.interp(0.0, value[first - 1 : first + 1], lead[first - 1 : first + 1]))


def price_table(model: ScoreModel, costs: Floats) -> tuple[Floats, Floats]:
    """Logarithms of prices, evenly spaced, and the offsets (prices, K + 1) at the typical spread."""
    return _price_table(model, tuple(costs.tolist()))


@lru_cache(maxsize=8)
def _price_table(model: ScoreModel, costs: tuple[float, ...]) -> tuple[Floats, Floats]:
    """Every call of a search asks for it, and all calls with one model and the same prices get the same."""
    scale = float(np.sqrt(model.within[-1, -1]))
    grid = np.log(scale) + np.linspace(np.log(1e-4), np.log(50.0), 70)
    return grid, index_offsets(model.foretold, np.array(costs), np.exp(grid))
