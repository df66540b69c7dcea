"""``diffkit audit compare``: the same audit on several models, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, Device, Dtype, Format, Out

if TYPE_CHECKING:
    from memorization.comparison.paired import AuditRun


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished audits; the first is the baseline.")],
    out: Out = None,
    names: Annotated[str | None, typer.Option(help="Names for the report, comma separated.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="Prompts on which to measure what the models lost: lab:held-out, or a file.")
    ] = None,
    quality_limit: Annotated[int, typer.Option(min=1, help="So many of the prompts.")] = 16,
    quality_seeds: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    rewards: Annotated[
        str, typer.Option(help="Rewards for text alignment, comma separated; on the lab its own and its judge.")
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
    from memorization.comparison.paired import read_runs, summarise_comparison

    found = read_runs(runs, [name.strip() for name in names.split(",")] if names else None)
    if quality is not None and out is None:
        raise InputError("Quality is measured into a folder: add --out runs/compare, or leave out --quality.")
    if out is None:
        _show(summarise_comparison(found), format)
        return
    asked = {"prompts": quality, "limit": quality_limit, "seeds": quality_seeds, "rewards": rewards}
    comparison = _run(found, out, asked if quality is not None else None, dtype, device)
    _show(comparison, format)
    say(f"Report: {out / 'report.html'}")


def _run(found: list[AuditRun], out: Path, asked: dict[str, Any] | None, dtype: str, device: str) -> dict[str, Any]:
    from diffkit.runs import Run
    from memorization.comparison.paired import summarise_comparison
    from memorization.comparison.report import write_comparison

    config = {"audits": {one.name: one.record["config_hash"] for one in found}, "quality": asked}
    with Run.open(out, config=config, kind="audit-compare") as run:
        measured = None
        if asked is not None:
            from memorization.comparison.quality import measure_quality
            from memorization.quality import QualitySettings

            settings = found[0].summary["settings"]
            measured = measure_quality(
                run,
                found,
                asked["prompts"],
                limit=asked["limit"],
                settings=QualitySettings(
                    seeds_per_prompt=asked["seeds"],
                    num_inference_steps=settings["num_inference_steps"],
                    guidance_scale=settings["guidance_scale"],
                    micro_batch=QualitySettings.micro_batch
                    if settings["micro_batch"] == "auto"
                    else settings["micro_batch"],
                    seed=settings["seed"],
                ),
                rewards=[name.strip() for name in asked["rewards"].split(",") if name.strip()],
                dtype=dtype,
                device=device,
            )
        comparison = summarise_comparison(found, measured)
        run.write_json("summary.json", comparison)
        write_comparison(run, found, comparison)
    return comparison


def _show(comparison: Mapping[str, Any], format: str) -> None:
    if format == "json":
        write_json(comparison)
        return
    rows = [
        [name, *one["verdicts"].values(), one["budget"], f"{one['controls_flagged']['count']}"]
        for name, one in comparison["runs"].items()
    ]
    verdicts = list(next(iter(comparison["runs"].values()))["verdicts"])
    title = f"{comparison['suspects']} suspects; verdicts of the same audit"
    write_table(["model", *verdicts, "budget", "controls flagged"], rows, title=title)
    paired = [
        [
            name,
            f"{what}, budget {one['budget']}" if "budget" in one else what,
            f"{one['before']} of {one['n']}",
            f"{one['after']} of {one['n']}",
            None if one["p"] is None else f"{one['p']:.3g}",
            one["left_out"],
        ]
        for name, changes in comparison["changes"].items()
        for what, one in changes.items()
    ]
    headers = ["model", "brought back by", "before", "after", "p (McNemar)", "left out"]
    write_table(headers, paired, title=f"Paired changes from {comparison['baseline']}")
