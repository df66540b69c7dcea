"""What a pruning schedule would have given on recorded rewards: reward against budget, beside best-of-N."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from diffkit.errors import InputError
from diffkit.ledger import Prices
from diffkit.rewards.combine import Combine
from ttsnap.evaluation.accounting import PUBLISHED_PRICES, Accounting
from ttsnap.evaluation.budget_curves import budget_curves, finished_cost, known_prices, read_budgets
from ttsnap.evaluation.index_curves import Spend
from ttsnap.evaluation.index_simulation import simulate_index
from ttsnap.evaluation.simulation import Simulation
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.load import load_schedule_or_index
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.trajectories.read import load_tensor

__all__ = ["Simulation", "default_budgets", "simulate"]


def simulate(
    tensor: RewardTensor | Sequence[RewardTensor] | str | Path,
    schedule: PruningSchedule | IndexBook | str | Path = "2:0.4,6:0.4,11:0.5",
    budgets: str | Sequence[float] | None = None,
    *,
    prices: Prices | None = None,
    accounting: Accounting = "exact",
    combine: Combine | None = None,
    spend: Spend = "total",
    resamples: int = 50,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Simulation:
    """Replay a pruning schedule on recorded rewards and compare it with best-of-N at each budget. No model is run.

    Args:
        tensor: recorded rewards, several of the same candidates, or a file or folder with one reward that
            :func:`ttsnap.load_tensor` reads.
        schedule: steps and shares to keep, a ``.json`` file that ``fit`` wrote, or the name of a shipped one. An index
            rule spends more on some prompts than on others; the table shows what all of them cost together.
        budgets: for one prompt: numbers or ``"400:4000:200"`` in the unit of the prices, ``"2x:20x:1x"`` in finished
            candidates. By default 400 to 4000 for the published prices, else what best-of-2 to best-of-20 cost.
        prices: of a call, a decoding and a score; by default those that came with the rewards.
        accounting: how candidates are counted; see :mod:`ttsnap.evaluation.accounting`.
        spend: of an index rule: ``total`` lets the prompts share the budget and never exceeds it, ``mean`` keeps to a
            price, as the search ``index-mean`` does, and can overrun it.
        combine: prune and choose by all rewards together: rank, zscore or pareto.
        resamples: random subsets of each prompt's candidates.
        seed: of the subsets.
        advance: called after each budget.

    Raises:
        InputError: a budget does not pay for one candidate, budgets do not rise, a step was not recorded, no prices
            are given and none came with the rewards, or an index rule with ``combine`` or another accounting.

    Example:
        >>> from ttsnap import load_tensor, simulate
        >>> result = simulate(load_tensor("lab", "lab-noise-aware"), "lab", "2x:8x:2x", resamples=5)
        >>> curve = result.curves[0]
        >>> curve.values.shape, bool(curve.values.mean() > curve.best_of_n.mean())
        ((24, 4), True)
        >>> print(result)
        lab-noise-aware: gain over best-of-N ...
    """
    group = _tensors(tensor)
    prices = prices or known_prices(group[0])
    calls = group[0].calls
    finished = finished_cost(prices, calls)
    pruning = load_schedule_or_index(schedule)
    budgets = default_budgets(group[0], prices) if budgets is None else budgets
    limits = read_budgets(budgets, prices, calls)
    in_finished = isinstance(budgets, str) and "x" in budgets
    if isinstance(pruning, IndexBook):
        if combine is not None or accounting != "exact":
            raise InputError(
                "An index rule searches by one reward and counts exactly; leave out combine and accounting."
            )
        return simulate_index(group, pruning, limits, prices=prices, in_finished=in_finished, spend=spend,
                              resamples=resamples, seed=seed, advance=advance)  # fmt: skip
    curves = budget_curves(
        group,
        lambda budget: pruning.resolve(calls, equivalent=budget / finished),
        limits,
        prices=prices,
        accounting=accounting,
        resamples=resamples,
        seed=seed,
        combine=combine,
        advance=advance,
    )
    return Simulation(tuple(curves), tuple(group), finished, in_finished)


def default_budgets(tensor: RewardTensor, prices: Prices) -> str:
    """The published budgets for the published prices, else the cost of 2 to 20 finished candidates."""
    pool = tensor.final.shape[1]
    return "400:4000:200" if prices == PUBLISHED_PRICES else f"{min(2, pool)}x:{min(20, pool)}x:1x"


def _tensors(tensor: RewardTensor | Sequence[RewardTensor] | str | Path) -> list[RewardTensor]:
    if isinstance(tensor, str | Path):
        return [load_tensor(tensor)]
    group = [tensor] if isinstance(tensor, RewardTensor) else list(tensor)
    if not group:
        raise InputError("There are no rewards to replay; give at least one.")
    return group
