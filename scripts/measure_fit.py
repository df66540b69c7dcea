"""What learned schedules and the index rule gain over best-of-N on held-out prompts of the shared reward tensors.

python scripts/measure_fit.py [--data FILE] [--folds 2] [--json docs/figures/fit.json]

Every variant is fitted on the other folds and measured on the one held out, at equal exact cost: the gain is the area
between the reward-against-budget curves over best-of-N's own (per cent). Where a rule sets the mean cost only,
best-of-N is taken at the cost that was really spent.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.integrate import simpson

from diffkit.console import progress
from diffkit.stats import bootstrap_mean
from ttsnap.alignment import bootstrap_ratio, expected_best_of_n
from ttsnap.evaluation.accounting import PUBLISHED_PRICES
from ttsnap.fitting.index_check import best_of_n_at
from ttsnap.fitting.index_fit import fit_index, replay_index
from ttsnap.fitting.local_search import Bench, search_budgets
from ttsnap.reward_tensor import RewardTensor
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.index_rule import IndexRule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.strategies.pruning import PUBLISHED
from ttsnap.trajectories.read import load_tensor

KEYS = [f"{model}_{reward}" for model in ("flux", "sdxl") for reward in ("imagereward", "pickscore", "hpsv2")]
BUDGETS = [400.0, 1300.0, 2200.0, 3100.0, 4000.0]
ONE = 20 * 9.9 + 1.2
VARIANTS = [
    "published schedule", "one schedule for all budgets", "one schedule for each budget",
    "index, hard budget", "index, mean budget", "index, mean budget without caution",
    "index, mean budget without cap", "index, mean budget, scale known", "index, mean budget, scale guessed once",
]  # fmt: skip


def fractions(train: RewardTensor, test: RewardTensor) -> dict[str, np.ndarray]:
    """Differences to best-of-N (P, B) of fixed fractions."""
    seen = Bench.of(train, PUBLISHED_PRICES, resamples=20, seed=0)
    unseen = Bench.of(test, PUBLISHED_PRICES, resamples=60, seed=0, stream=1)
    each = search_budgets(seen, BUDGETS, seed=0, cuts=6, tries=150, advance=int)
    reference = np.array([np.mean(expected_best_of_n(train.final, int(budget / ONE))) for budget in BUDGETS])

    def whole(schedule: PruningSchedule) -> float:
        return float(simpson([seen.mean(schedule, budget) for budget in BUDGETS] - reference, x=BUDGETS))

    chosen = dict(
        zip(VARIANTS, ([PUBLISHED] * len(BUDGETS), [max(set(each), key=whole)] * len(BUDGETS), each), strict=False)
    )
    plain = np.stack([expected_best_of_n(test.final, int(budget / ONE)) for budget in BUDGETS], axis=-1)
    return {
        name: np.stack([unseen.values(one, budget) for one, budget in zip(schedules, BUDGETS, strict=True)], axis=-1)
        - plain
        for name, schedules in chosen.items()
    }


def index_rules(train: RewardTensor, test: RewardTensor) -> dict[str, tuple[np.ndarray, list[float]]]:
    """Differences to best-of-N (P, B) of the index rule and its variants, and the share of the budget spent."""
    book = fit_index(train, PUBLISHED_PRICES, BUDGETS)
    scores = np.concatenate([test.looks[:, :, list(book.model.steps)], test.final[:, :, None]], axis=-1)
    means, spreads = scores.mean(axis=1), test.final.std(axis=1) / np.sqrt(book.model.within[-1, -1])
    guessed = guess(book, train, scores)
    found = {}
    for name in VARIANTS[3:]:
        fitted, known = book, None
        if name.endswith("caution"):
            fitted = fit_index(train, PUBLISHED_PRICES, BUDGETS, caution=0.0)
        elif name.endswith("cap"):
            fitted = fit_index(train, PUBLISHED_PRICES, BUDGETS, cap=8.0)
        elif name.endswith("known"):
            known = (means, spreads)
        elif name.endswith("once"):
            known = guessed
        differences, shares = [], []
        for budget in (amount / ONE for amount in BUDGETS):
            rule = fitted.at(budget, hard=name.endswith("hard budget"))
            if known is not None:
                rule = _at_mean(rule, test, budget, known)
            run = replay_index(rule, test, resamples=6, seed=2, true_values=known)
            spent = budget if rule.spend_all else float(run.spent.mean())
            differences.append(np.nanmean(run.values, axis=1) - best_of_n_at(test.final, spent))
            shares.append(float(run.spent.mean()) / budget)
        found[name] = (np.stack(differences, axis=-1), shares)
    return found


def guess(book: IndexBook, train: RewardTensor, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prompts' means by regression on the mean of four scores at the first look; the typical spread."""
    looks = np.concatenate([train.looks[:, :, list(book.model.steps)], train.final[:, :, None]], axis=-1)
    early, means = looks[:, :4, 0].mean(axis=1), looks.mean(axis=1)
    design = np.stack([np.ones_like(early), early], axis=-1)
    weights = np.linalg.lstsq(design, means, rcond=None)[0]
    first = scores[:, :4, 0].mean(axis=1)
    return np.stack([np.ones_like(first), first], axis=-1) @ weights, np.ones(len(first))


def _at_mean(rule: IndexRule, tensor: RewardTensor, budget: float, known: tuple[np.ndarray, np.ndarray]) -> IndexRule:
    """The rule at the price at which it costs the budget when the scale is given."""
    low, high = np.log(rule.price) - 4, np.log(rule.price) + 4
    for _ in range(7):
        middle = (low + high) / 2
        rule = replace(rule, price=float(np.exp(middle)), _table=rule.table)
        spent = replay_index(rule, tensor, resamples=1, seed=1, true_values=known).spent.mean()
        low, high = (middle, high) if spent > budget else (low, middle)
    return rule


def measure(tensor: RewardTensor, folds: int) -> dict[str, Any]:
    """All variants on one tensor, each prompt held out once."""
    count = len(tensor.final)
    parts = [np.arange(fold, count, folds) for fold in range(folds)]
    gathered = {name: np.full((count, len(BUDGETS)), np.nan) for name in VARIANTS}
    spent: dict[str, list[list[float]]] = {}
    for part in parts:
        train, test = tensor.select(np.setdiff1d(np.arange(count), part)), tensor.select(part)
        for name, difference in fractions(train, test).items():
            gathered[name][part] = difference
        for name, (difference, shares) in index_rules(train, test).items():
            gathered[name][part] = difference
            spent.setdefault(name, []).append(shares)
    plain = np.stack([expected_best_of_n(tensor.final, int(budget / ONE)) for budget in BUDGETS], axis=-1)
    below = np.asarray(simpson(plain - plain[:, :1], x=BUDGETS, axis=-1))
    found = {}
    for name, difference in gathered.items():
        above = np.asarray(simpson(difference, x=BUDGETS, axis=-1))
        low, high = bootstrap_ratio(above, below)
        found[name] = {"gain %": 100 * above.mean() / below.mean(), "low": 100 * low, "high": 100 * high}
        if name in spent:
            found[name]["spent share"] = float(np.mean(spent[name]))
    at = {str(int(budget)): bootstrap_mean(gathered[VARIANTS[2]][:, k]) for k, budget in enumerate(BUDGETS)}
    return {"variants": found, "difference to best-of-N of one schedule for each budget": at, "prompts": count}


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
