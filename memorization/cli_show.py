"""What ``diffkit audit`` prints: the plan of a dry run, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.console import say, write_json, write_table

if TYPE_CHECKING:
    from memorization.auditing.settings import AuditSettings
    from memorization.items import Gathered


def show_plan(gathered: Gathered, settings: AuditSettings, format: str, *, reference: bool) -> None:
    """How much would be done, on stdout."""
    from memorization.auditing.attack_suite import build_attacks
    from memorization.items import with_companions

    items = with_companions(gathered.items, edits=settings.edits, reference=reference)
    with_image = sum(bool(item.suspect.images) for item in items)
    attacks = [one for name in settings.attacks for one in build_attacks(name, settings).values()]
    attempts = with_image * len(settings.starts)
    plan = {
        "suspects": sum(item.role == "suspect" for item in items),
        "controls": sum(item.role == "control" for item in items),
        "edited suspects": sum(item.role == "edit" for item in items),
        "suspects on the reference model": sum(item.role == "reference" for item in items),
        "rows in error": len(gathered.suspect_errors) + len(gathered.control_errors),
        "items without an image": len(items) - with_image,
        "images from captions": len(items) * settings.generations,
        "images from triggers": attempts * len(attacks) * len(settings.budgets) * settings.attack_generations,
        "sample gradients": attempts * sum(one.cost()[-1] for one in attacks),
    }
    if format == "json":
        write_json(plan)
    else:
        write_table(["would be done", "count"], list(plan.items()))


def show(summary: Mapping[str, Any], out: Path, format: str) -> None:
    """The verdicts on stdout, the rest on stderr."""
    if format == "json":
        write_json(summary)
        return
    rows = [
        [verdict, count, interval(summary["rates"][verdict])] for verdict, count in summary["verdicts"].items() if count
    ]
    budget, failure = summary["budget"], summary["controls"]["failure"]
    judged = f", attack {summary['rung']} judged at budget {budget}" if budget and not failure else ""
    write_table(["verdict", "suspects", "share (95 % interval)"], rows, title=f"{summary['suspects']} suspects{judged}")
    for name, rung in summary["rungs"].items() if len(summary["rungs"]) > 1 else ():
        failure = rung["controls"]["failure"]
        judged = f"set aside: {failure}" if failure else f"judged at budget {rung['budget']}"
        say(f"{name}: weakest that works for {rung['weakest_for']} suspects; {judged}.")
    if summary["clusters"]["n"] < summary["suspects"]:
        say(f"Near-duplicates counted once, there are {summary['clusters']['n']} suspects.")
    controls = summary["controls"]
    if controls["failure"]:
        say(f"Controls: {controls['failure']}.")
    else:
        say(f"Controls flagged: {controls['flagged']['count']} of {controls['flagged']['n']}.")
    say(f"Report: {out / 'report.html'}")


def interval(rate: Mapping[str, Any]) -> str:
    """A share with its interval, as text."""
    if rate["share"] is None:
        return "–"
    low, high = rate["interval"]
    return f"{rate['share']:.0%} ({low:.0%} to {high:.0%})"
