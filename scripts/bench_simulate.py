"""Time of the simulated curves of FLUX (19 budgets, 50 resamplings, 3 rewards) on one core; the goal is 3 s.

With --gains also the gains of the published schedule under each accounting, for the README's table.

    python scripts/bench_simulate.py ../shared/data/reward_tensors_prompts000-099.npz
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import get_args

from diffkit.console import write_table
from ttsnap.accounting import Accounting
from ttsnap.curves import budget_curves
from ttsnap.schedule import PruningSchedule
from ttsnap.tensors import RewardTensor, load_tensor

RUNS = 5
PUBLISHED = PruningSchedule.parse("2:0.4,6:0.4,11:0.5")
REWARDS = ("imagereward", "pickscore", "hpsv2")


def main() -> None:
    """Print the seconds, and the gains where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tensors", help="the .npz with the published rewards")
    parser.add_argument("--gains", action="store_true", help="also the gains under each accounting")
    parser.add_argument("--resamples", type=int, default=200, help="resamplings for the gains")
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
    if given.gains:
        show_gains(given.tensors, given.resamples)


def load(path: str, model: str, *, plain: bool) -> list[RewardTensor]:
    """The three rewards of a model."""
    return [load_tensor(path, f"{model}_{reward}", plain=plain) for reward in REWARDS]


def show_gains(path: str, resamples: int) -> None:
    """One row a reward and kind of pruning, one column an accounting."""
    rows = []
    for model in ("flux", "sdxl"):
        for plain in (False, True):
            group = load(path, model, plain=plain)
            columns = [
                budget_curves(group, PUBLISHED, accounting=one, resamples=resamples) for one in get_args(Accounting)
            ]
            for k, tensor in enumerate(group):
                cells = [
                    f"{u.gain:+.1f} ({u.low:+.1f} to {u.high:+.1f})" for one in columns if (u := one[k].utilisation)
                ]
                rows.append([tensor.name, "TTSp" if plain else "TTSnap", *cells])
    write_table(
        ["reward", "pruned by", *get_args(Accounting)], rows, title="gain over best-of-N in %, 95 % over prompts"
    )


if __name__ == "__main__":
    main()
