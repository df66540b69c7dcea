"""``diffkit audit trend``: at which training step does a LoRA hold which image?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffkit.console import say, write_json, write_table
from diffkit.exit_codes import ExitCode
from diffkit.option_values import needed_folder, read_numbers
from diffkit.options import (
    Debug,
    Device,
    DryRun,
    Dtype,
    Format,
    Guidance,
    Limit,
    MicroBatch,
    ModelConfig,
    Out,
    Preset,
    Revision,
    Scheduler,
    Seed,
    Variant,
)
from memorization.cli.audit_options import (
    Alpha,
    AttackGenerations,
    Attacks,
    Batch,
    Budgets,
    Controls,
    Copies,
    CorrectionMethod,
    Draws,
    Generations,
    LearningRates,
    OtherCaptions,
    Pooled,
    Size,
    Starts,
    Threshold,
    read_settings,
)
from memorization.cli.items import gather_items, planned_work, print_plan, print_row_errors
from memorization.cli.options import LimitControls, Steps, Suspects

if TYPE_CHECKING:
    from memorization.auditing.trend_result import Trend


def trend(
    more_checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="Further checkpoints, after --lora FIRST.")
    ] = None,
    base: Annotated[str, typer.Option("--base", "-m", help="The model that was tuned, as --model elsewhere.")] = "lab",
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", help="Checkpoints of the LoRA: .safetensors files, or folders with one; two or more."),
    ] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="Audit the base too, as step 0.")] = False,
    training_steps: Annotated[
        str | None,
        typer.Option(help="Of the checkpoints, e.g. 500,1000; by default from the files' metadata or names."),
    ] = None,
    reference_model: Annotated[
        str | None, typer.Option(help="A model not trained on the suspects, or none; by default the base.")
    ] = None,
    suspects: Suspects = "lab:planted",
    controls: Controls = "lab:controls",
    out: Out = None,
    budgets: Budgets = "0,1,10,25,50",
    starts: Starts = "other,gaussian",
    generations: Generations = 10,
    attack_generations: AttackGenerations = 3,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    alpha: Alpha = 0.05,
    correction: CorrectionMethod = "bh",
    attack: Attacks = "dori",
    learning_rates: LearningRates = None,
    draws: Draws = 8,
    pooled: Pooled = "fixed",
    size: Size = None,
    copies: Copies = "tiled",
    threshold: Threshold = None,
    other_captions: OtherCaptions = None,
    preset: Preset = "auto",
    batch: Batch = 4,
    micro_batch: MicroBatch = "16",
    limit: Limit = None,
    limit_controls: LimitControls = None,
    seed: Seed = 0,
    revision: Revision = None,
    variant: Variant = None,
    config: ModelConfig = None,
    scheduler: Scheduler = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Audit the checkpoints of a LoRA: at which training step is each image retained, replicated?

    Example: diffkit audit trend --base MODEL --lora tuned/checkpoint-*/ --suspects trained/ --out runs/trend.
    Each checkpoint gets the same audit (diffkit audit), in a subfolder of --out, with the base as reference model; the
    same command resumes. Exit codes: 0 done; 2 wrong input; 3 some items could not be scored; 130 interrupted.
    """
    from diffkit.model_options import ModelOptions
    from memorization.auditing.training_steps import training_steps as read_steps
    from memorization.auditing.trend import audit_trend, planned_checkpoints

    settings = read_settings(
        budgets=budgets,
        starts=starts,
        attack=attack,
        learning_rates=learning_rates,
        draws=draws,
        pooled=pooled,
        size=size,
        generations=generations,
        attack_generations=attack_generations,
        steps=steps,
        guidance=guidance,
        alpha=alpha,
        correction=correction,
        copies=copies,
        threshold=threshold,
        seed=seed,
        batch=batch,
        micro_batch=micro_batch,
        other_captions=other_captions,
    )
    checkpoints = read_checkpoints(lora or [], more_checkpoints or [])
    given = None
    if training_steps is not None:
        given = read_numbers(training_steps, int, "training steps such as 500,1000")
    gathered = gather_items(suspects, controls, limit=limit, limit_controls=limit_controls)
    model = ModelOptions(
        model=base,
        revision=revision,
        variant=variant,
        config=config,
        scheduler=scheduler,
        dtype=dtype,
        device=device,
    )
    if dry_run:
        ordered = read_steps(checkpoints, given)
        points = planned_checkpoints(model, checkpoints, ordered, with_base=with_base, reference_model=reference_model)
        print_row_errors(gathered, None)
        plans = [planned_work(gathered, settings, reference=point.model.reference is not None) for point in points]
        names = {f"{ordered.unit} {p.step}": p.model.lora.name if p.model.lora else base for p in points}
        print_plan({**names, **{name: sum(plan[name] for plan in plans) for name in plans[0]}}, format)
        return
    out = needed_folder(out, "A trend", "runs/trend")
    print_row_errors(gathered, out)
    result = audit_trend(
        model,
        checkpoints,
        gathered,
        out=out,
        steps=given,
        with_base=with_base,
        reference_model=reference_model,
        settings=settings,
        preset=preset,
    )
    _print_trend(result.summary, out, format)
    in_error = any(point["items_in_error"] for point in result.summary["points"])
    raise typer.Exit(ExitCode.ITEMS if in_error else ExitCode.DONE)


def read_checkpoints(lora: list[str], further: list[str]) -> list[str]:
    """The checkpoints of ``--lora A B C``, of ``--lora A --lora B``, or of arguments alone.

    Raises:
        InputError: both several ``--lora`` and arguments, whose order would be a guess.
    """
    from diffkit.errors import InputError

    if len(lora) > 1 and further:
        raise InputError("Give the checkpoints after one --lora: --lora FIRST SECOND ...")
    return [*lora, *further]


def _print_trend(trend: Trend, out: Path, format: str) -> None:
    if format == "json":
        write_json(trend)
        return
    rows = [
        [
            point["step"],
            point["replicated"]["count"],
            point["held"]["count"],
            point["verdicts"]["inconclusive"],
            f"{point['controls_flagged']['count']} of {point['controls_flagged']['n']}",
            point["budget"],
        ]
        for point in trend["points"]
    ]
    headers = [trend["unit"], "replicated", "replicated or retained", "inconclusive", "controls flagged", "budget"]
    write_table(headers, rows, title=f"{trend['suspects']} suspects, checkpoints of {trend['base']}")
    first = [
        [suspect["key"].removeprefix("suspect:"), suspect["first_replicated"], suspect["first_retained"]]
        for suspect in trend["by_suspect"]
        if suspect["first_retained"] is not None
    ]
    if first:
        first.sort(key=lambda row: (row[2], row[0]))
        write_table(["suspect", "first replicated", "first replicated or retained"], first)
    for point in trend["points"]:
        if point["controls_failure"]:
            say(f"{trend['unit']} {point['step']}, controls: {point['controls_failure']}.")
    say(f"Report: {out / 'report.html'}")
