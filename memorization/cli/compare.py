"""``diffkit audit compare``: compare the same audit on several models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffkit.console import say, write_json, write_table
from diffkit.options import Debug, Device, Dtype, Format, Out

if TYPE_CHECKING:
    from memorization.comparison.result import Comparison


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished audits; the first is the baseline.")],
    out: Out = None,
    names: Annotated[str | None, typer.Option(help="Names for the report, comma separated.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="Prompts on which to measure the models' quality: lab:held-out, or a file.")
    ] = None,
    quality_limit: Annotated[int, typer.Option(min=1, help="So many of the prompts.")] = 16,
    quality_seeds: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    rewards: Annotated[
        str, typer.Option(help="Rewards for text alignment, comma separated; by default the preset's.")
    ] = "",
    dtype: Dtype = "auto",
    device: Device = "auto",
    format: Format = "table",
    debug: Debug = False,
) -> None:
    """Compare audits of several models: original, mitigated, never trained on the suspects.

    Refuses audits of other suspects or settings and names the keys. With --out, a report with all pictures; the same
    command resumes there. Exit codes: 0 done; 2 wrong input; 130 interrupted.
    """
    from memorization.comparison.run import QualityRequest, compare_audits

    labels = [name.strip() for name in names.split(",")] if names else None
    request = None
    if quality is not None:
        request = QualityRequest(quality, quality_limit, quality_seeds, rewards, dtype, device)
    comparison = compare_audits(runs, labels, out=out, quality=request)
    _print_comparison(comparison, format)
    if out is not None:
        say(f"Report: {out / 'report.html'}")


def _print_comparison(comparison: Comparison, format: str) -> None:
    if format == "json":
        write_json(comparison)
        return
    rows = [
        [name, *run["verdicts"].values(), run["budget"], f"{run['controls_flagged']['count']}"]
        for name, run in comparison["runs"].items()
    ]
    verdicts = list(next(iter(comparison["runs"].values()))["verdicts"])
    title = f"{comparison['suspects']} suspects; verdicts of the same audit"
    write_table(["model", *verdicts, "budget", "controls flagged"], rows, title=title)
    paired = [
        [
            name,
            f"{way}, budget {change['budget']}" if "budget" in change else way,
            f"{change['before']} of {change['n']}",
            f"{change['after']} of {change['n']}",
            None if change["p"] is None else f"{change['p']:.3g}",
            change["left_out"],
        ]
        for name, changes in comparison["changes"].items()
        for way, change in changes.items()
    ]
    headers = ["model", "brought back by", "before", "after", "p (McNemar)", "left out"]
    write_table(headers, paired, title=f"Paired changes from {comparison['baseline']}")
