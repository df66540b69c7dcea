"""What learned schedules and the index rule gain over best-of-N on held-out prompts of the shared reward tensors.

python scripts/measure_fit.py [--data FILE] [--folds 2] [--json docs/figures/fit.json]

Every variant is fitted on the other folds and measured on the one held out, at budgets that buy whole images. The
baseline is the same for all: best-of-N at the budget, as an exact expectation. The gain is the area between the
reward-against-budget curves over best-of-N's own (per cent). The index rule spends one total over the prompts that are
held out, never more; with a hard budget, at most the budget on each. ``bench_simulate.py`` has the same grid.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import simpson

from diffkit.console import progress
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import budget_utilisation, expected_best_of_n
from ttsnap.evaluation.accounting import PUBLISHED_PRICES
from ttsnap.evaluation.budget_curves import budget_curves, mean_of_winners
from ttsnap.fitting.index_check import fit_guarded
from ttsnap.fitting.index_fit import IndexReplay, fit_index, replay_index, replay_total
from ttsnap.fitting.local_search import Bench, search_budgets
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.strategies.pruning import PUBLISHED
from ttsnap.trajectories.read import load_tensor

KEYS = [f"{model}_{reward}" for model in ("flux", "sdxl") for reward in ("imagereward", "pickscore", "hpsv2")]
BUDGETS = [400.0, 1200.0, 2200.0, 3000.0, 4000.0]  # of the published ones; they buy 2, 6, 11, 15 and 20 images
ONE = 20 * 9.9 + 1.2
TRIES = 150
RESAMPLES = 200  # of the published schedule, as in bench_simulate.py
PUBLISHED_NAME, ALL, EACH, ADAPTIVE = (
    "published schedule", "one schedule for all budgets", "one schedule for each budget",
    "index or schedule, whichever was better on prompts held out of the fitting",
)  # fmt: skip
INDEX = [
    "index", "index, hard budget for each prompt", "index without caution", "index without cap", "index, scale known",
    "index, scale guessed once",
]  # fmt: skip
VARIANTS = [PUBLISHED_NAME, ALL, EACH, INDEX[0], ADAPTIVE, *INDEX[1:]]


class Measured(NamedTuple):
    """Differences to best-of-N (P, B), and the highest total cost over the total budget of any search."""

    differences: np.ndarray
    spent: float


def plain(tensor: RewardTensor) -> np.ndarray:
    """(P, B) best-of-N as each budget buys it."""
    return np.stack([expected_best_of_n(tensor.final, int(budget / ONE)) for budget in BUDGETS], axis=-1)


def fractions(train: RewardTensor, test: RewardTensor) -> dict[str, Measured]:
    """The schedules that were learned."""
    seen = Bench.of(train, PUBLISHED_PRICES, resamples=20, seed=0)
    unseen = Bench.of(test, PUBLISHED_PRICES, resamples=60, seed=0, stream=1)
    each = search_budgets(seen, BUDGETS, seed=0, cuts=6, tries=TRIES, advance=int)
    reference = plain(train).mean(axis=0)

    def whole(schedule: PruningSchedule) -> float:
        return float(simpson([seen.mean(schedule, budget) for budget in BUDGETS] - reference, x=BUDGETS))

    chosen = {ALL: [max(set(each), key=lambda schedule: (whole(schedule), str(schedule)))] * len(BUDGETS), EACH: each}
    return {
        name: Measured(
            np.stack([unseen.values(one, at) for one, at in zip(schedules, BUDGETS, strict=True)], axis=-1)
            - plain(test),
            max(unseen.cost(one, at) / at for one, at in zip(schedules, BUDGETS, strict=True)),
        )
        for name, schedules in chosen.items()
    }


def index_rules(train: RewardTensor, test: RewardTensor, schedule: Measured) -> dict[str, Measured]:
    """The index rule and its variants; the prompts held out share their budget.

    Args:
        schedule: of the schedule for each budget, which takes the rule's place where it was better.
    """
    book, _ = fit_guarded(train, PUBLISHED_PRICES, BUDGETS, folds=2, tries=TRIES)
    scores = np.concatenate([test.looks[:, :, list(book.model.steps)], test.final[:, :, None]], axis=-1)
    true = (scores.mean(axis=1), test.final.std(axis=1) / np.sqrt(book.model.within[-1, -1]))
    measured = {}
    for name in INDEX:
        fitted, values = book, None
        if name.endswith("caution"):
            fitted = fit_index(train, PUBLISHED_PRICES, BUDGETS, caution=0.0)
        elif name.endswith("cap"):
            fitted = fit_index(train, PUBLISHED_PRICES, BUDGETS, cap=8.0)
        elif name.endswith("known"):
            values = true
        elif name.endswith("once"):
            values = guess(book, train, scores)
        runs = [_run(fitted, test, budget / ONE, values, name) for budget in BUDGETS]
        measured[name] = Measured(
            np.stack([mean_of_winners(run.values) for run in runs], axis=-1) - plain(test),
            max(float(run.spent.mean(axis=0).max()) * ONE / at for run, at in zip(runs, BUDGETS, strict=True)),
        )
    columns = [
        measured[INDEX[0]].differences[:, k] if plan is None else schedule.differences[:, k] if plan.steps else 0.0
        for k, plan in enumerate(book.fallbacks)
    ]
    better = np.stack([np.broadcast_to(column, len(test.final)) for column in columns], axis=-1)
    measured[ADAPTIVE] = Measured(better, max(measured[INDEX[0]].spent, schedule.spent))
    return measured


def _run(
    book: IndexBook, tensor: RewardTensor, budget: float, values: tuple[np.ndarray, np.ndarray] | None, name: str
) -> IndexReplay:
    hard = name == INDEX[1]
    rule = book.at(budget, hard=hard)
    if hard:
        return replay_index(rule, tensor, resamples=6, seed=2)
    draws = 24 if name == INDEX[0] else 6
    return replay_total(rule, tensor, budget, resamples=draws, seed=2, true_values=values)


def guess(book: IndexBook, train: RewardTensor, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prompts' means by regression on the mean of four scores at the first look; the typical spread."""
    looks = np.concatenate([train.looks[:, :, list(book.model.steps)], train.final[:, :, None]], axis=-1)
    early, means = looks[:, :4, 0].mean(axis=1), looks.mean(axis=1)
    design = np.stack([np.ones_like(early), early], axis=-1)
    weights = np.linalg.lstsq(design, means, rcond=None)[0]
    first = scores[:, :4, 0].mean(axis=1)
    return np.stack([np.ones_like(first), first], axis=-1) @ weights, np.ones(len(first))


def measure(tensor: RewardTensor, folds: int) -> dict[str, Any]:
    """All variants on one tensor, each prompt held out once."""
    count, reference = len(tensor.final), plain(tensor)
    published = budget_curves(tensor, PUBLISHED, BUDGETS, resamples=RESAMPLES)[0]
    gathered = {name: np.full((count, len(BUDGETS)), np.nan) for name in VARIANTS}
    gathered[PUBLISHED_NAME] = published.values - published.best_of_n
    spent: dict[str, float] = {}
    for part in (np.arange(fold, count, folds) for fold in range(folds)):
        train, test = tensor.select(np.setdiff1d(np.arange(count), part)), tensor.select(part)
        schedules = fractions(train, test)
        for name, measured in {**schedules, **index_rules(train, test, schedules[EACH])}.items():
            gathered[name][part] = measured.differences
            spent[name] = max(spent.get(name, 0.0), measured.spent)
    figures = {}
    for name, difference in gathered.items():
        gain = budget_utilisation(reference + difference, reference, BUDGETS)
        figures[name] = {"gain %": gain.gain, "low": gain.low, "high": gain.high}
        if name in spent:
            figures[name]["highest share of the budget spent"] = spent[name]
    at = {
        name: {str(int(budget)): bootstrap_mean(gathered[name][:, k]) for k, budget in enumerate(BUDGETS)}
        for name in (EACH, INDEX[0], ADAPTIVE)
    }
    better = {
        str(int(budget)): bootstrap_mean(gathered[ADAPTIVE][:, k] - gathered[EACH][:, k])
        for k, budget in enumerate(BUDGETS)
    }
    means = {
        name: {str(int(budget)): float(gathered[name][:, k].mean()) for k, budget in enumerate(BUDGETS)} for name in at
    }
    return {
        "variants": figures, "difference to best-of-N": at, "mean difference to best-of-N": means,
        "difference of index or schedule to the schedule": better, "prompts": count,
        "distinct candidates": tensor.final.shape[1] - tensor.repeated,
    }  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DIFFKIT_SHARED_DATA", "../shared/data")) / "reward_tensors_prompts000-099.npz"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"folds": arguments.folds, "budgets": BUDGETS, "rewards": {}}
    with progress("measuring", total=len(KEYS)) as bar:
        for key in KEYS:
            figures["rewards"][key] = measure(load_tensor(arguments.data, key), arguments.folds)
            bar.advance()
    for model in ("flux", "sdxl"):
        keys = [key for key in KEYS if key.startswith(model)]
        figures[f"mean gain %, {model}"] = {
            name: float(np.mean([figures["rewards"][key]["variants"][name]["gain %"] for key in keys]))
            for name in VARIANTS
        }
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
