"""``diffkit audit``: which of these images does the model hold?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.console import say, write_json, write_table
from diffkit.exit_codes import ExitCode
from diffkit.model_options import ModelOptions
from diffkit.option_values import needed_folder
from diffkit.options import (
    Debug,
    Device,
    DryRun,
    Dtype,
    Format,
    Guidance,
    Limit,
    Lora,
    MicroBatch,
    Mitigation,
    Model,
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
    ReferenceModel,
    Size,
    Starts,
    Threshold,
    read_settings,
)
from memorization.cli.compare import compare
from memorization.cli.detect import detect
from memorization.cli.items import gather_items, planned_work, print_plan, print_row_errors, stated_power
from memorization.cli.options import LimitControls, Steps, Suspects
from memorization.cli.trend import trend
from memorization.cli.verify import verify

if TYPE_CHECKING:
    from memorization.auditing.result import AuditSummary
    from memorization.auditing.verdicts import Verdict

app = typer.Typer(add_completion=False, subcommand_metavar="[COMMAND ...]")

app.command("compare")(compare)
app.command("detect")(detect)
app.command("trend")(trend)
app.command("verify")(verify)

FailOn = Literal["never", "replicated", "retained", "inconclusive"]
#: What each level of --fail-on includes.
FAILING: dict[FailOn, tuple[Verdict, ...]] = {
    "never": (),
    "replicated": ("replicated",),
    "retained": ("replicated", "retained"),
    "inconclusive": ("replicated", "retained", "inconclusive"),
}


@app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    model: Model = "lab",
    lora: Lora = None,
    mitigation: Mitigation = None,
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
    detector: Annotated[
        str, typer.Option(help="Detectors that score the captions alone, comma separated; or none. auto: what fits.")
    ] = "auto",
    edited_controls: Annotated[
        str, typer.Option(help="Attack edits of the suspects too: mirror, crop, shuffle, noise, or none.")
    ] = "none",
    attack_all: Annotated[
        bool,
        typer.Option("--attack-all", help="Attack suspects at every budget, also where the verdict is certain before."),
    ] = False,
    triage: Annotated[
        str | None,
        typer.Option(
            metavar="DETECTOR:SHARE",
            help="Attack only the suspects that a detector ranks highest: noise_magnitude:0.2 takes a fifth.",
        ),
    ] = None,
    reference_model: ReferenceModel = None,
    masks: Annotated[bool, typer.Option("--masks", help="Show which pixels of each template are fixed.")] = False,
    copies: Copies = "tiled",
    threshold: Threshold = None,
    other_captions: OtherCaptions = None,
    preset: Preset = "auto",
    fail_on: Annotated[FailOn, typer.Option(help="Exit 1 if a suspect is this or worse.")] = "never",
    save_triggers: Annotated[
        bool, typer.Option("--save-triggers", help="Keep the triggers. They reproduce training images: sensitive.")
    ] = False,
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
    """Audit a model for images it has memorized.

    Each suspect is generated from its caption and, unless that gives the image, attacked, by text embeddings (DoRI)
    unless --attack names others. The same attack runs first on the controls, which set the budget; a suspect counts as
    retained only where the controls are not reproduced. Needs a folder, --out; the same command resumes there. Several
    processes share the work under accelerate launch. To compare several audits: diffkit audit compare.
    Exit codes: 0 done; 1 --fail-on met; 2 wrong input; 3 some items could not be scored; 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return
    from memorization.auditing.models import AuditedModel, reference_options
    from memorization.auditing.run import audit as run

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
        detector=detector,
        edited_controls=edited_controls,
        masks=masks,
        attack_all=attack_all,
        triage=triage,
    )
    gathered = gather_items(suspects, controls, limit=limit, limit_controls=limit_controls)
    options = ModelOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        variant=variant,
        config=config,
        scheduler=scheduler,
        lora=lora,
        mitigation=mitigation,
    )
    if dry_run:
        options.check()
        print_row_errors(gathered, None)
        other = reference_options(options, reference_model)
        if other is not None:
            other.check()
        print_plan(
            {**planned_work(gathered, settings, reference=other is not None), **stated_power(gathered, settings)},
            format,
        )
        return
    out = needed_folder(out, "An audit", "runs/audit")
    print_row_errors(gathered, out)
    audited = AuditedModel.from_options(options, reference_model=reference_model)
    result = run(audited, gathered, out=out, settings=settings, preset=preset, save_triggers=save_triggers)
    summary = result.summary
    _print_summary(summary, out, format)
    raise typer.Exit(exit_code(summary, fail_on))


def exit_code(summary: AuditSummary, fail_on: FailOn) -> int:
    """1 when a verdict of the --fail-on level occurs, else 3 when something could not be scored, else 0."""
    from memorization.auditing.summary import items_in_error

    if any(summary["verdicts"][verdict] for verdict in FAILING[fail_on]):
        return ExitCode.FAIL_ON
    return ExitCode.ITEMS if items_in_error(summary) else ExitCode.DONE


def _print_summary(summary: AuditSummary, out: Path, format: str) -> None:
    """The verdicts on stdout, the rest on stderr."""
    from diffkit.stats import format_interval

    if format == "json":
        write_json(summary)
        return
    rows = []
    for verdict, count in summary["verdicts"].items():
        if count:
            rate = summary["rates"][verdict]
            share = "–" if rate["share"] is None else f"{rate['share']:.0%} ({format_interval(rate)})"
            rows.append([verdict, count, share])
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
