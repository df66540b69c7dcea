"""``diffkit ttsnap fit``: learn from recorded rewards when to look and how many to keep, for each budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.console import progress, say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, DryRun, Format, Seed

if TYPE_CHECKING:
    from diffkit.ledger import Prices
    from ttsnap.reward_tensor import RewardTensor
    from ttsnap.schedules.fitted_schedule import FittedSchedule

HEADERS = ["budget", "best-of", "candidates", "schedule", "best-of-N", "reward", "difference", "95 % interval"]


def fit(
    tensor: Annotated[str, typer.Argument(help="An .npz, published YAML folders, a collected folder, or lab.")],
    key: Annotated[str | None, typer.Option(help="Which reward, when there are several.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Prune on the plain reward.")] = False,
    budgets: Annotated[
        str, typer.Option("--budgets", "--budget", help="first:last:step, or one or several by commas, for one prompt.")
    ] = "400:4000:200",
    call_cost: Annotated[float | None, typer.Option(min=0.0, help="Price of one denoiser call.")] = None,
    verify_cost: Annotated[float | None, typer.Option(min=0.0, help="Price of one look, decoding included.")] = None,
    rule: Annotated[
        Literal["fractions", "index"],
        typer.Option(help="fractions: a schedule for each budget; index: Pandora's rule, which keeps the mean cost."),
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

    Budgets count in the unit of the costs. A collected folder knows its own, in FLOP; with 2x:16x:2x they count
    finished candidates. When nothing beats best-of-N on held-out prompts, the file holds best-of-N.
    Exit codes: 0 done; 2 wrong input.
    """
    from ttsnap.fitting.fit_schedule import fit as fit_schedule
    from ttsnap.trajectories.read import load_tensor

    if out is None or out.suffix != ".json":
        raise InputError("There is no file for the schedule; give one that ends in .json with --out.")
    rewards = load_tensor(tensor, key, plain=plain)
    prices = prices_of(rewards, call_cost, verify_cost)
    limits = budgets_of(budgets, prices, rewards.calls)
    prompts, pool = rewards.final.shape
    if dry_run:
        say(f"Would fit {len(limits)} budgets on {prompts} prompts with {pool} candidates; nothing was run.")
        return
    if rule == "index":
        _fit_index(rewards, prices, limits, folds=folds, seed=seed, out=out, format=format)
        return
    with progress("fitting", total=(folds + 1) * len(limits)) as bar:
        fitted = fit_schedule(rewards, prices, limits, seed=seed, folds=folds, cuts=cuts, resamples=resamples,
                              advance=bar.advance)  # fmt: skip
    from diffkit.runs.files import write_bytes_atomically

    write_bytes_atomically(out, (fitted.to_json() + "\n").encode())
    _show(fitted, format)


def _fit_index(
    rewards: RewardTensor, prices: Prices, limits: list[float], *, folds: int, seed: int, out: Path, format: str
) -> None:
    """Write the index rule's prices and model; show what it gained on prompts held out."""
    from diffkit.runs.files import write_bytes_atomically
    from diffkit.stats import bootstrap_mean
    from ttsnap.fitting.index_check import held_out_differences
    from ttsnap.fitting.index_fit import fit_index

    with progress("fitting", total=folds + 1) as bar:
        gained, spent = held_out_differences(rewards, prices, limits, folds=folds, seed=seed, advance=bar.advance)
        book = fit_index(rewards, prices, limits, seed=seed)
        bar.advance()
    write_bytes_atomically(out, (book.to_json() + "\n").encode())
    found = []
    for column, (budget, price) in enumerate(book.entries):
        known = [float(gain) for gain in gained[:, column] if gain == gain]  # without NaN
        low, high = bootstrap_mean(known)
        found.append({"equivalent": budget, "price": price, "spent": float(spent[:, column].mean()),
                      "difference": sum(known) / len(known), "low": low, "high": high})  # fmt: skip
    if format == "json":
        write_json(found)
    else:
        write_table(["mean cost, best-of", "spent", "price", "difference", "95 % interval"], [
            [f"{one['equivalent']:.2f}", f"{one['spent']:.2f}", f"{one['price']:.4g}", f"{one['difference']:+.4f}",
             f"{one['low']:+.4f} to {one['high']:+.4f}"] for one in found
        ])  # fmt: skip
    if not all(one["low"] > 0 for one in found):
        say("At some budgets the index rule is not surely better than best-of-N on held-out prompts.")


def prices_of(rewards: RewardTensor, call: float | None, verify: float | None) -> Prices:
    """The given costs, or those that were counted when the rewards were recorded."""
    from diffkit.ledger import Prices

    if call is not None and verify is not None:
        if call <= 0:
            raise InputError("A denoiser call must cost something; give --call-cost above 0.")
        return Prices(call, 0.0, verify)
    if call is not None or verify is not None:
        raise InputError("Give both --call-cost and --verify-cost, in one unit.")
    known = rewards.prices
    if known is None or known.call is None or known.decode is None or known.verify is None:
        raise InputError("The rewards do not say what a call and a look cost; give --call-cost and --verify-cost.")
    return known


def budgets_of(text: str, prices: Prices, calls: int) -> list[float]:
    """The budgets in the unit of the prices; ``2x:16x:2`` counts finished candidates."""
    from ttsnap.evaluation.budget_curves import parse_budgets

    budgets = parse_budgets(text.replace("x", ""))
    if "x" not in text:
        return list(budgets)
    one = calls * (prices.call or 0.0) + (prices.decode or 0.0) + (prices.verify or 0.0)
    return [budget * one for budget in budgets]


def _show(fitted: FittedSchedule, format: str) -> None:
    if format == "json":
        write_json(json.loads(fitted.to_json()))
        return
    rows: list[list[object]] = []
    entries = {entry.budget: entry for entry in fitted.entries}
    for at in fitted.expected:
        entry = entries.get(at.budget)
        chosen: list[object] = [None, None, "best-of-N"]
        if entry is not None:
            chosen = [f"{entry.equivalent:.1f}", entry.candidates, str(entry.schedule) or "best-of-N"]
        rows.append([f"{at.budget:g}", *chosen, f"{at.best_of_n:.4f}", f"{at.reward:.4f}",
                     f"{at.reward - at.best_of_n:+.4f}", f"{at.low:+.4f} to {at.high:+.4f}"])  # fmt: skip
    write_table(HEADERS, rows)
    if fitted.reason:
        say(fitted.reason)
    elif fitted.gain is not None:
        say(f"Gain over best-of-N on held-out prompts: {fitted.gain:.1f} % "
            f"(95 % interval {fitted.low:.1f} to {fitted.high:.1f}).")  # fmt: skip
