"""Local search for the best pruning schedule at each budget on recorded rewards.

Every schedule starts with as many candidates as the exact ledger allows. All are compared on the same random subsets
of candidates (common random numbers), and a neighbour replaces the present schedule only when its mean advantage over
prompts exceeds ``CAUTION`` standard errors of that difference, so that chance differences are not learned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import InputError
from diffkit.ledger import Prices
from ttsnap.evaluation.accounting import allot
from ttsnap.evaluation.replay import draw_orders, replay
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.pruning_schedule import PruningSchedule

__all__ = ["BEST_OF_N", "Bench", "search_budget", "search_budgets"]

Floats = NDArray[np.float64]
CAUTION = 0.5  # standard errors by which a neighbour must be better
BEST_OF_N = PruningSchedule()
STARTS = (
    "2:0.4,6:0.4,11:0.5", "4:0.35,8:0.5", "5:0.5,8:0.35", "6:0.3,12:0.5", "3:0.5,5:0.5,10:0.5", "4:0.3", "8:0.3",
    "2:0.6,4:0.6,6:0.6,8:0.6,11:0.6", "3:0.7,5:0.7,7:0.7,9:0.7,11:0.7,14:0.7",
)  # fmt: skip
"""Where the search begins, step indices of 20 calls; they are stretched to the tensor's number of calls."""
DRAFTS = (0.06, 0.12, 0.25, 0.5)
"""Shares of further beginnings, which look ahead where that was recorded: once, or after a look at x0 that halves."""
Look = tuple[int, int]  # step, and the calls by which it looks ahead


@dataclass
class Bench:
    """Values of schedules on one tensor, always on the same subsets.

    Attributes:
        orders: (P, R, N), see :func:`ttsnap.evaluation.replay.draw_orders`.
    """

    tensor: RewardTensor
    prices: Prices
    orders: NDArray[np.int64]
    _cache: dict[tuple[PruningSchedule, float], Floats] = field(default_factory=dict)

    @classmethod
    def of(cls, tensor: RewardTensor, prices: Prices, *, resamples: int, seed: int, stream: int = 0) -> Bench:
        """A bench with ``resamples`` subsets for each prompt."""
        count, pool = tensor.final.shape
        return cls(tensor, prices, draw_orders(range(count), pool, resamples, seed=seed, stream=stream))

    def counts(self, schedule: PruningSchedule, budget: float) -> list[int]:
        """Candidates to begin with and after each look."""
        bought = allot(budget, schedule, self.tensor.calls, self.prices, pool=self.tensor.final.shape[1])
        return [bought.candidates, *bought.survivors]

    def cost(self, schedule: PruningSchedule, budget: float) -> float:
        """What the whole candidates that a budget buys cost, in the unit of the prices."""
        pool = self.tensor.final.shape[1]
        return allot(budget, schedule, self.tensor.calls, self.prices, pool=pool).spent

    def values(self, schedule: PruningSchedule, budget: float) -> Floats:
        """(P,) mean final reward of each prompt; NaN where no draw had a winner; -inf when it is not affordable."""
        key = (schedule, budget)
        if key not in self._cache:
            try:
                n = self.counts(schedule, budget)[0]
            except InputError:
                self._cache[key] = np.full(len(self.tensor.final), -np.inf)
            else:
                rewards = replay(self.tensor, schedule, n, orders=self.orders).values
                won = np.isfinite(rewards)
                total = np.where(won, rewards, 0.0).sum(axis=1)
                self._cache[key] = np.divide(total, won.sum(axis=1), out=np.full(len(total), np.nan), where=won.any(1))
        return self._cache[key]

    def mean(self, schedule: PruningSchedule, budget: float) -> float:
        """Mean over prompts."""
        values = self.values(schedule, budget)
        return float(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else float("-inf")

    def better(self, new: PruningSchedule, old: PruningSchedule, budget: float) -> bool:
        """Whether ``new`` wins by more than ``CAUTION`` standard errors over prompts."""
        mine, theirs = self.values(new, budget), self.values(old, budget)
        both = ~(np.isnan(mine) | np.isnan(theirs))
        if np.isneginf(mine).any() or not both.any():
            return False
        gain = mine[both] - theirs[both]
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
        return bool(gain.mean() > CAUTION * error and gain.mean() > 0)


def search_budget(
    bench: Bench,
    budget: float,
    generator: np.random.Generator,
    *,
    cuts: int = 6,
    tries: int = 200,
    starts: Sequence[PruningSchedule] = (),
) -> PruningSchedule:
    """The best schedule found for one budget.

    Args:
        cuts: most looks in mid-denoising.
        tries: neighbours tried from each of the three best starts.
        starts: further schedules to begin with, for example a neighbouring budget's.
    """
    allowed = [look for look in bench.tensor.recorded_looks if look[0] < bench.tensor.calls - 1]
    given = (*_starts(allowed, bench.tensor.calls), *starts)
    begin = {BEST_OF_N, *(schedule for schedule in given if len(schedule.steps) <= cuts)}
    ranked = sorted(begin, key=lambda schedule: (-bench.mean(schedule, budget), str(schedule)))
    improved = []
    for current in ranked[: 3 if allowed else 1]:
        for _ in range(tries if allowed else 0):
            neighbour = _neighbour(bench.counts(current, budget), current.looks, allowed, cuts, generator)
            if neighbour is not None and bench.better(neighbour, current, budget):
                current = neighbour
        improved.append(current)
    return _without_idle_looks(bench, max(improved, key=lambda schedule: bench.mean(schedule, budget)), budget)


def _without_idle_looks(bench: Bench, schedule: PruningSchedule, budget: float) -> PruningSchedule:
    """The schedule without the looks that drop nobody at this budget, unless it is better with them."""
    counts = bench.counts(schedule, budget)
    useful = [at for at, (before, after) in enumerate(itertools.pairwise(counts)) if after < before]
    lean = _schedule([schedule.looks[at] for at in useful], [schedule.keep[at] for at in useful])
    return schedule if bench.better(schedule, lean, budget) else lean


def _schedule(looks: Sequence[Look], keep: Sequence[float]) -> PruningSchedule:
    steps, ahead = zip(*looks, strict=True) if looks else ((), ())
    return PruningSchedule(steps, tuple(keep), lookahead=ahead)


def _starts(allowed: Sequence[Look], calls: int) -> list[PruningSchedule]:
    """The starts on this tensor's looks; those of which two looks fall together are left out."""
    estimated = [step for step, ahead in allowed if not ahead]
    fitting = []
    for look, share in itertools.product([look for look in allowed if look[1]], DRAFTS):
        fitting.append(_schedule([look], [share]))
        fitting += [_schedule([(step, 0), look], [0.5, share]) for step in estimated if step < look[0]]
    for text in STARTS if estimated else ():
        schedule = PruningSchedule.parse(text)
        steps = [min(estimated, key=lambda step: abs(step - ((old + 1) * calls / 20 - 1))) for old in schedule.steps]
        if all(before < after for before, after in itertools.pairwise(steps)):
            fitting.append(PruningSchedule(tuple(steps), schedule.keep))
    return fitting


def _neighbour(
    counts: Sequence[int], seen: Sequence[Look], allowed: Sequence[Look], cuts: int, generator: np.random.Generator
) -> PruningSchedule | None:
    """A random small change; None when it leads nowhere."""
    size, left, looks = counts[0], list(counts[1:]), list(seen)
    move = generator.integers(6)
    if move == 0 and len(looks) < cuts:
        new = allowed[int(generator.choice(len(allowed)))]
        at = sum(look < new for look in looks)
        before, after = (left[at - 1] if at else size), (left[at] if at < len(left) else 1)
        looks.insert(at, new)
        left.insert(at, max(1, round((before * after) ** 0.5)))
    elif not looks:
        return None
    elif move == 1:
        at = int(generator.integers(len(looks)))
        del looks[at], left[at]
    elif move <= 3:
        at = int(generator.integers(len(looks)))
        place = allowed.index(looks[at]) + int(generator.choice([-2, -1, 1, 2]))
        if not 0 <= place < len(allowed):
            return None
        looks[at] = allowed[place]
    else:
        at = int(generator.integers(len(looks)))
        change = max(1, int(generator.choice([0.0, 0.1, 0.2]) * left[at]))
        left[at] = max(1, left[at] + change * int(generator.choice([-1, 1])))
    sizes = [size, *left]
    if any(after > before for before, after in zip(sizes, left, strict=False)) or len(dict(looks)) < len(looks):
        return None
    if looks != sorted(looks):
        return None
    shares = tuple(max(round(after / before, 3), 0.001) for before, after in zip(sizes, left, strict=False))
    return _schedule(looks, shares)


def search_budgets(
    bench: Bench,
    budgets: Sequence[float],
    *,
    seed: int,
    cuts: int,
    tries: int,
    advance: Callable[[], object],
) -> list[PruningSchedule]:
    """One schedule for each budget, rising; each begins from the one before too, and may take the next one's.

    Args:
        advance: called after each budget.
    """
    schedules: list[PruningSchedule] = []
    for index, budget in enumerate(budgets):
        generator = np.random.default_rng([seed, index])
        schedules.append(search_budget(bench, budget, generator, cuts=cuts, tries=tries, starts=schedules[-1:]))
        advance()
    for index in reversed(range(len(budgets) - 1)):
        if bench.better(schedules[index + 1], schedules[index], budgets[index]):
            schedules[index] = _without_idle_looks(bench, schedules[index + 1], budgets[index])
    return schedules
