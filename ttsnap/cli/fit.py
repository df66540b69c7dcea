"""``diffkit ttsnap fit``: learn from recorded rewards when to look and how many to keep, for each budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.console import progress, say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, DryRun, Format, Seed
from ttsnap.cli.costs import costs_of
from ttsnap.cli.options import CallCost, RecordedRewards, VerifyCost

if TYPE_CHECKING:
    from diffkit.ledger import Prices
    from ttsnap.fitting.index_check import Difference
    from ttsnap.reward_tensor import RewardTensor
    from ttsnap.schedules.fitted_schedule import FittedSchedule


def fit(
    tensor: RecordedRewards,
    key: Annotated[str | None, typer.Option(help="Which reward, when there are several.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Prune on the plain reward.")] = False,
    budgets: Annotated[
        str | None,
        typer.Option(
            "--budgets",
            "--budget",
            help="first:last:step, or one or several by commas, for one prompt; as simulate's by default.",
        ),
    ] = None,
    call_cost: CallCost = None,
    verify_cost: VerifyCost = None,
    rule: Annotated[
        Literal["fractions", "index"],
        typer.Option(help="fractions: a schedule for each budget; index: Pandora's rule, prompts share their budget."),
    ] = "fractions",
    cuts: Annotated[int, typer.Option(min=1, help="Most looks in mid-denoising.")] = 6,
    folds: Annotated[int, typer.Option(min=2, help="Parts of the prompts held out in turn.")] = 5,
    resamples: Annotated[int, typer.Option(min=1, help="Random subsets of each prompt's candidates.")] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", dir_okay=False, help="The schedule's file, .json.")] = None,
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Fit a schedule for each budget, and say what it gains over best-of-N on prompts held out.

    Budgets count in the unit of the costs. A collected folder knows its own, in FLOP, published folders theirs; with
    2x:16x:2x budgets count finished candidates. When nothing beats best-of-N on held-out prompts, the file holds
    best-of-N.
    Exit codes: 0 done; 2 wrong input.
    """
    from ttsnap.evaluation.budget_curves import read_budgets, within_pool
    from ttsnap.evaluation.simulate import default_budgets
    from ttsnap.evaluation.simulation import tensor_notes
    from ttsnap.fitting.fit_schedule import fit as fit_schedule
    from ttsnap.trajectories.read import load_tensor

    if out is None or out.suffix != ".json":
        raise InputError("There is no file for the schedule; give one that ends in .json with --out.")
    rewards = load_tensor(tensor, key, plain=plain)
    prices = costs_of(rewards, call_cost, verify_cost).prices
    chosen = default_budgets(rewards, prices) if budgets is None else budgets
    limits = within_pool(read_budgets(chosen, prices, rewards.calls), rewards, prices)
    prompts, pool = rewards.final.shape
    if dry_run:
        say(f"Would fit {len(limits)} budgets on {prompts} prompts with {pool} candidates; nothing was run.")
        return
    for note in tensor_notes(rewards):
        say(note)
    if rule == "index":
        how = {"folds": folds, "seed": seed, "cuts": cuts, "resamples": resamples}
        _fit_index(rewards, prices, limits, how, out=out, format=format)
        return
    with progress("fitting", total=(folds + 1) * len(limits)) as bar:
        fitted = fit_schedule(rewards, limits, prices=prices, seed=seed, folds=folds, cuts=cuts, resamples=resamples,
                              advance=bar.advance)  # fmt: skip
    from diffkit.runs.files import write_bytes_atomically

    write_bytes_atomically(out, (fitted.to_json() + "\n").encode())
    _print_schedules(fitted, format)


def _fit_index(
    rewards: RewardTensor, prices: Prices, limits: list[float], how: Mapping[str, int], *, out: Path, format: str
) -> None:
    """Write the index rule with its fallbacks; show what rule and schedule gained on prompts held out."""
    from diffkit.runs.files import write_bytes_atomically
    from ttsnap.fitting.index_check import fit_guarded

    with progress("fitting", total=how["folds"] + 1) as bar:
        book, held_out = fit_guarded(rewards, prices, limits, **how, advance=bar.advance)
    write_bytes_atomically(out, (book.to_json() + "\n").encode())
    rows = held_out.rows(book)
    if format == "json":
        write_json(rows)
        return
    write_table(["budget, best-of", "spent", "price", "index", "95 % interval", "schedule", "95 % interval", "kept"], [
        [f"{row['equivalent']:.2f}", f"{row['spent']:.2f}", f"{row['price']:.4g}", *_shown(row),
         *_shown(row["schedule"]), row["kept"]] for row in rows
    ])  # fmt: skip
    say("Differences to best-of-N at the same budget, on prompts held out, which share one total; kept is what the "
        "file holds at each budget.")  # fmt: skip


def _shown(difference: Difference) -> list[str]:
    return [f"{difference['difference']:+.4f}", f"{difference['low']:+.4f} to {difference['high']:+.4f}"]


def _print_schedules(fitted: FittedSchedule, format: str) -> None:
    if format == "json":
        write_json(json.loads(fitted.to_json()))
        return
    from ttsnap.schedules.fitted_schedule import HEADERS

    write_table(HEADERS, fitted.table())
    if fitted.conclusion():
        say(fitted.conclusion())
