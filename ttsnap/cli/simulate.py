"""``diffkit ttsnap simulate``: what a schedule would have given on recorded rewards, budget by budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.console import progress, say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, DryRun, Format, Seed

if TYPE_CHECKING:
    from diffkit.ledger import Prices
    from ttsnap.evaluation.budget_curves import BudgetCurve
    from ttsnap.reward_tensor import RewardTensor

HEADERS = ["budget", "best-of", "reward", "candidates", "schedule", "reward", "difference", "95 % interval",
           "best survives", "unspent"]  # fmt: skip


def simulate(
    tensor: Annotated[str, typer.Argument(help="An .npz, published YAML folders, a collected folder, or lab.")],
    key: Annotated[
        list[str] | None, typer.Option(help="Which reward, when there are several; may be repeated.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Prune on the plain reward (TTSp).")] = False,
    schedule: Annotated[
        str, typer.Option(help="Looks and shares to keep, a .json file of fit, or the name of a shipped one.")
    ] = "2:0.4,6:0.4,11:0.5",
    budgets: Annotated[
        str | None, typer.Option(help="first:last:step for one prompt; with x, 2x:20x:1x, in finished candidates.")
    ] = None,
    call_cost: Annotated[float | None, typer.Option(min=0.0, help="Price of one denoiser call.")] = None,
    verify_cost: Annotated[float | None, typer.Option(min=0.0, help="Price of one look, decoding included.")] = None,
    accounting: Annotated[
        Literal["exact", "fractional", "published"],
        typer.Option(help="exact counts whole calls and survivors; published is the authors' way."),
    ] = "exact",
    combine: Annotated[
        Literal["rank", "zscore", "pareto"] | None, typer.Option(help="Prune and choose by all rewards together.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Random subsets of each prompt's candidates.")] = 50,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(dir_okay=False, help="Also draw the curves: .png, .svg or .pdf.")] = None,
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Replay a pruning schedule on recorded rewards and compare it with best-of-N at each budget.

    Costs are those that a collected folder counted, else the published 9.9 a call and 1.2 a look. Budgets are 400 to
    4000 by the published costs, else what best-of-2 to best-of-20 cost.
    Exit codes: 0 done; 2 wrong input.
    """
    from ttsnap.cli.fit import budgets_of
    from ttsnap.evaluation.accounting import PUBLISHED_PRICES
    from ttsnap.evaluation.budget_curves import budget_curves
    from ttsnap.schedules.load import load_schedule
    from ttsnap.trajectories.read import load_tensor

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"Cannot draw into {str(plot)!r}; end it in .png, .svg or .pdf.")
    plan = load_schedule(schedule)
    keys: list[str | None] = [*key] if key else [None]
    group = [load_tensor(tensor, one, plain=plain) for one in keys]
    prices = _prices(group[0], call_cost, verify_cost)
    calls = group[0].calls
    one = _finished(prices, calls)
    wanted = budgets or ("400:4000:200" if prices == PUBLISHED_PRICES else f"2x:{min(20, group[0].final.shape[1])}x:1x")
    limits = budgets_of(wanted, prices, calls)
    if dry_run:
        prompts, pool = group[0].final.shape
        names = ", ".join(rewards.name for rewards in group)
        say(f"Would replay {names} of {prompts} prompts with {pool} candidates at {len(limits)} budgets.")
        return
    with progress("simulating", total=len(limits)) as bar:
        curves = budget_curves(
            group, lambda budget: plan.resolve(calls, equivalent=budget / one), limits, prices=prices,
            accounting=accounting, resamples=resamples, seed=seed, combine=combine, advance=bar.advance,
        )  # fmt: skip
    if plot is not None:
        from ttsnap.plots.budget import save_curves

        save_curves(plot, curves, finished=one if "x" in wanted else None)
    if format == "json":
        setting = {"schedule": schedule, "accounting": accounting, "combine": combine, "plain": plain,
                   "resamples": resamples, "seed": seed, "call": prices.call, "finished": one}  # fmt: skip
        rewards = [_report(curve, tensor, one) for curve, tensor in zip(curves, group, strict=True)]
        write_json({**setting, "rewards": rewards})
    else:
        _show(curves, group, one if "x" in wanted else None)


def _prices(rewards: RewardTensor, call: float | None, verify: float | None) -> Prices:
    from ttsnap.cli.fit import prices_of
    from ttsnap.evaluation.accounting import PUBLISHED_PRICES

    if call is None and verify is None and rewards.prices is None:
        return PUBLISHED_PRICES
    return prices_of(rewards, call, verify)


def _finished(prices: Prices, calls: int) -> float:
    """What one candidate without pruning costs."""
    from ttsnap.evaluation.accounting import fractional_cost
    from ttsnap.schedules.pruning_schedule import PruningSchedule

    return fractional_cost(PruningSchedule(), calls, prices)


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _points(curve: BudgetCurve, finished: float) -> list[dict[str, Any]]:
    """One for each budget, which is ``equivalent`` to so many finished candidates; means are over the prompts that have
    a winner at it."""
    import numpy as np

    points = []
    for b, (bought, best) in enumerate(zip(curve.allotments, curve.best_allotments, strict=True)):
        difference = float(np.nanmean(curve.values[:, b] - curve.best_of_n[:, b]))
        error = float(curve.difference_error[b])
        points.append({
            "budget": curve.budgets[b],
            "equivalent": curve.budgets[b] / finished,
            "best_of_n": {"candidates": best.candidates, "reward": _known(np.nanmean(curve.best_of_n[:, b])),
                          "unspent": best.unspent, "capped": best.capped},
            "schedule": {"schedule": str(curve.schedules[b]), "candidates": bought.candidates,
                         "survivors": list(bought.survivors), "reward": _known(np.nanmean(curve.values[:, b])),
                         "spent": bought.spent, "unspent": bought.unspent, "capped": bought.capped,
                         "survival": [_known(share) for share in curve.survival[b]],
                         "regret": _known(curve.regret[b])},
            "difference": {"mean": _known(difference), "standard_error": _known(error),
                           "low": _known(difference - 1.96 * error), "high": _known(difference + 1.96 * error)},
        })  # fmt: skip
    return points


def _report(curve: BudgetCurve, tensor: RewardTensor, finished: float) -> dict[str, Any]:
    import numpy as np

    gain = None if curve.utilisation is None else curve.utilisation._asdict()
    return {
        "name": curve.name,
        "prompts": len(curve.values),
        "prompts_without_winner": int((~np.isfinite(curve.values)).any(axis=1).sum()),
        "missing_scores": tensor.missing,
        "gain_percent": gain and {name: _known(value) for name, value in gain.items()},
        "budgets": _points(curve, finished),
    }


def _show(curves: list[BudgetCurve], group: list[RewardTensor], finished: float | None) -> None:
    """One table a reward; budgets in finished candidates where their cost is given."""
    unit, suffix = (1.0, "") if finished is None else (finished, "x")
    for curve, tensor in zip(curves, group, strict=True):
        rows: list[list[object]] = []
        for point in _points(curve, unit):
            best, ours, away = point["best_of_n"], point["schedule"], point["difference"]
            rows.append([
                f"{point['budget'] / unit:g}{suffix}", _count(best), _digits(best["reward"]), _count(ours),
                ours["schedule"] or "best-of-N", _digits(ours["reward"]), _digits(away["mean"], "+"),
                None if away["low"] is None else f"{away['low']:+.4f} to {away['high']:+.4f}",
                f"{100 * ours['survival'][-1]:.0f} %" if ours["survival"][-1] is not None else None,
                f"{ours['unspent'] / unit:.3g}{suffix}",
            ])  # fmt: skip
        write_table(HEADERS, rows, title=_title(curve))
        if tensor.missing:
            say(f"{curve.name}: {tensor.missing} scores are missing; such candidates never win.")
        if any(bought.capped for bought in (*curve.allotments, *curve.best_allotments)):
            say(f"{curve.name}: * marks budgets that pay for more candidates than were recorded; the gain is over the "
                "budgets before the first of them.")  # fmt: skip


def _title(curve: BudgetCurve) -> str:
    name = curve.name or "reward"
    if curve.utilisation is None or math.isnan(curve.utilisation.gain):
        return name
    gain, low, high = curve.utilisation
    return f"{name}: gain over best-of-N {gain:+.1f} % (95 % interval over prompts {low:+.1f} to {high:+.1f})"


def _count(side: dict[str, Any]) -> str:
    return f"{side['candidates']}{'*' if side['capped'] else ''}"


def _digits(value: float | None, sign: str = "") -> str | None:
    return None if value is None else f"{value:{sign}.4f}"
