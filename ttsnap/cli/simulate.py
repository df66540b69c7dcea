"""``diffkit ttsnap simulate``: what a schedule would have given on recorded rewards, budget by budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffkit.console import progress, say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, DryRun, Format, Seed
from ttsnap.cli.costs import costs_of
from ttsnap.cli.options import CallCost, RecordedRewards, VerifyCost


def simulate(
    tensor: RecordedRewards,
    key: Annotated[
        list[str] | None, typer.Option(help="Which reward, when there are several; may be repeated.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Prune on the plain reward (TTSp).")] = False,
    schedule: Annotated[
        str, typer.Option(help="Looks and shares to keep, a .json of fit (index rules too), or a shipped one's name.")
    ] = "2:0.4,6:0.4,11:0.5",
    budgets: Annotated[
        str | None, typer.Option(help="first:last:step for one prompt; with x, 2x:20x:1x, in finished candidates.")
    ] = None,
    call_cost: CallCost = None,
    verify_cost: VerifyCost = None,
    accounting: Annotated[
        Literal["exact", "fractional", "published"],
        typer.Option(help="exact counts whole calls and survivors; published is the authors' way."),
    ] = "exact",
    combine: Annotated[
        Literal["rank", "zscore", "pareto"] | None, typer.Option(help="Prune and choose by all rewards together.")
    ] = None,
    spend: Annotated[
        Literal["total", "mean"],
        typer.Option(help="Of an index rule: total is shared and never exceeded; mean is index-mean's, a price."),
    ] = "total",
    resamples: Annotated[int, typer.Option(min=1, help="Random subsets of each prompt's candidates.")] = 50,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw the curves: .png, .svg or .pdf.")] = None,
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Replay a pruning schedule on recorded rewards and compare it with best-of-N at each budget.

    Costs are those that a collected folder counted, or with published folders the published 9.9 a call and 1.2 a
    look. Budgets are 400 to 4000 by the published costs, else what best-of-2 to best-of-20 cost; the prompts
    share an index rule's budget, and its total cost is shown.
    Exit codes: 0 done; 2 wrong input.
    """
    from ttsnap.evaluation.budget_curves import read_budgets
    from ttsnap.evaluation.simulate import default_budgets
    from ttsnap.evaluation.simulate import simulate as simulate_rewards
    from ttsnap.schedules.index_book import IndexBook
    from ttsnap.schedules.load import load_schedule_or_index
    from ttsnap.trajectories.read import load_tensor

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"Cannot draw into {str(plot)!r}; end it in .png, .svg or .pdf.")
    pruning = load_schedule_or_index(schedule)
    keys: list[str | None] = [*key] if key else [None]
    group = [load_tensor(tensor, name, plain=plain) for name in keys]
    costs = costs_of(group[0], call_cost, verify_cost)
    prices = costs.prices
    budgets = budgets or default_budgets(group[0], prices)
    limits = read_budgets(budgets, prices, group[0].calls)
    if dry_run:
        prompts, pool = group[0].final.shape
        names = ", ".join(rewards.name for rewards in group)
        say(f"Would replay {names} of {prompts} prompts with {pool} candidates at {len(limits)} budgets.")
        return
    with progress("simulating", total=len(limits)) as bar:
        result = simulate_rewards(
            group, pruning, budgets, prices=prices, accounting=accounting, combine=combine, spend=spend,
            resamples=resamples, seed=seed, advance=bar.advance,
        )  # fmt: skip
    if plot is not None:
        from ttsnap.plots.budget import save_curves

        name = "index rule" if isinstance(pruning, IndexBook) else "with pruning"
        save_curves(plot, result.curves, finished=result.finished if result.in_finished else None, name=name)
    if format == "json":
        own = {"spend": spend} if isinstance(pruning, IndexBook) else {}
        write_json({
            "schedule": schedule, "accounting": accounting, "combine": combine, "plain": plain,
            "resamples": resamples, "seed": seed, "call": prices.call, "costs": costs.to_json(),
            "finished": result.finished, "rewards": result.to_dict(), **own,
        })  # fmt: skip
        return
    for curve in result.curves:
        write_table(result.headers, result.table(curve), title=result.title(curve))
        for note in result.notes(curve):
            say(note)
