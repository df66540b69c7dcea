"""Time of the simulated curves of FLUX (19 budgets, 50 resamplings, 3 rewards) on one core; the goal is 3 s.

With --json the gains of the published schedule under each accounting are measured too, at the budgets of
``measure_fit.py``, and written there.

    python scripts/bench_simulate.py TENSORS.npz [--json docs/figures/tensors.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, get_args

from measure_fit import BUDGETS, RESAMPLES

from ttsnap.evaluation.accounting import Accounting
from ttsnap.evaluation.budget_curves import budget_curves
from ttsnap.reward_tensor import RewardTensor
from ttsnap.search.strategies.pruning import PUBLISHED
from ttsnap.trajectories.read import load_tensor

RUNS = 5
REWARDS = ("imagereward", "pickscore", "hpsv2")


def main() -> None:
    """Print the seconds, and write the gains where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tensors", help="the .npz with the published rewards")
    parser.add_argument("--json", type=Path, help="file for the gains under each accounting and the seconds")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="resamplings for the gains")
    given = parser.parse_args()
    walls, cores = [], []
    for _ in range(RUNS):
        group = load(given.tensors, "flux", plain=False)  # afresh: nothing is kept from the run before
        wall, core = time.perf_counter(), time.process_time()
        budget_curves(group, PUBLISHED, resamples=50)
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    print(
        f"19 budgets x 50 resamplings x 3 rewards: {statistics.median(walls):.2f} s on the clock, "
        f"{statistics.median(cores):.2f} s of one core (median of {RUNS})"
    )
    if given.json:
        figures = {"seconds of one core": statistics.median(cores), "budgets": BUDGETS,
                   "gains": gains(given.tensors, given.resamples)}  # fmt: skip
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def load(path: str, model: str, *, plain: bool) -> list[RewardTensor]:
    """The three rewards of a model."""
    return [load_tensor(path, f"{model}_{reward}", plain=plain) for reward in REWARDS]


def gains(path: str, resamples: int) -> list[dict[str, Any]]:
    """One row a reward and kind of pruning: gain over best-of-N in %, with its 95 % interval, by accounting."""
    rows: list[dict[str, Any]] = []
    for model in ("flux", "sdxl"):
        for plain in (False, True):
            group = load(path, model, plain=plain)
            curves = {
                one: budget_curves(group, PUBLISHED, BUDGETS, accounting=one, resamples=resamples)
                for one in get_args(Accounting)
            }
            for k, tensor in enumerate(group):
                found = {name: [u.gain, u.low, u.high] for name, one in curves.items() if (u := one[k].utilisation)}
                rows.append({"reward": tensor.name, "pruned by": "TTSp" if plain else "TTSnap", **found})
    return rows


if __name__ == "__main__":
    main()
