"""``diffkit audit detect``: which captions show signs of a memorized image? No images are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.console import say, write_json, write_table
from diffkit.exit_codes import ExitCode
from diffkit.micro_batch import read_micro_batch
from diffkit.model_options import ModelOptions
from diffkit.option_values import needed_folder, read_names
from diffkit.options import (
    Debug,
    Device,
    DryRun,
    Dtype,
    Format,
    Limit,
    Lora,
    MicroBatch,
    Mitigation,
    Model,
    ModelConfig,
    Out,
    Revision,
    Scheduler,
    Seed,
    Variant,
)
from memorization.cli.items import gather_items, print_plan, print_row_errors
from memorization.cli.options import LimitControls, Suspects

if TYPE_CHECKING:
    from diffkit.stats import Rate
    from memorization.detection.result import DetectSummary, ScoreResult, SuspectResult
    from memorization.detection.settings import DetectSettings
    from memorization.items import Gathered

CAPTION_WIDTH = 48


def detect(
    model: Model = "lab",
    suspects: Suspects = "lab:planted",
    controls: Annotated[
        str,
        typer.Option(
            "--controls", "-c", help="Captions whose images the model was not trained on, same forms; or none."
        ),
    ] = "lab:controls",
    out: Out = None,
    detectors: Annotated[
        str, typer.Option("--detectors", help="Names with commas, all or auto; options as in noise_magnitude:steps=1.")
    ] = "auto",
    seeds: Annotated[int, typer.Option(min=1, help="Noises for each caption; its score is their mean.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the generation that is judged.")] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, help="Its guidance scale.")] = 3.0,
    threshold: Annotated[
        float | None, typer.Option(help="Flag captions above it; from the controls by default.")
    ] = None,
    fpr: Annotated[float, typer.Option(help="Share of the controls that the threshold may flag.")] = 0.01,
    fail_on: Annotated[Literal["never", "flagged"], typer.Option(help="Exit 1 if any caption is flagged.")] = "never",
    micro_batch: MicroBatch = "16",
    limit: Limit = None,
    limit_controls: LimitControls = None,
    lora: Lora = None,
    mitigation: Mitigation = None,
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
    """Score captions alone for signs that the model has memorized their image.

    No training image is used. A flag says that a caption stands out from the controls' captions, and nothing about
    which image would come out: `diffkit audit` shows that. Needs a folder, --out; the same command resumes there.
    Several processes share the captions under accelerate launch.
    Exit codes: 0 done; 1 --fail-on met; 2 wrong input; 3 some captions could not be scored; 130 interrupted.
    """
    from memorization.detection import detectors as registry
    from memorization.detection.settings import DetectSettings

    groups = {"all": tuple(registry.names()), "auto": DetectSettings().detectors}
    settings = DetectSettings(
        detectors=groups.get(detectors, read_names(detectors)),
        seeds=seeds,
        num_inference_steps=steps,
        guidance_scale=guidance,
        micro_batch=read_micro_batch(micro_batch),
        seed=seed,
        threshold=threshold,
        fpr=fpr,
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
        print_plan(_planned_work(gathered, settings), format)
        return
    out = needed_folder(out, "A detection", "runs/detect")
    print_row_errors(gathered, out)
    any_fitting = detectors in groups
    summary = _run(gathered, settings, options, out, any_fitting)
    _print_scores(summary, out, format)
    raise typer.Exit(exit_code(summary, fail_on))


def exit_code(summary: DetectSummary, fail_on: str) -> int:
    """1 when a caption is flagged and that was asked for, else 3 when something could not be scored, else 0."""
    if fail_on == "flagged" and summary["flagged"]:
        return ExitCode.FAIL_ON
    return ExitCode.ITEMS if summary["unscored"] or summary["rows_in_error"] else ExitCode.DONE


def _run(
    gathered: Gathered,
    settings: DetectSettings,
    options: ModelOptions,
    out: Path,
    any_fitting: bool,
) -> DetectSummary:
    from diffkit import parallel
    from diffkit.mitigation.record import checksum_for
    from memorization.detection.compatibility import compatible_detectors
    from memorization.detection.run import detect as run_detection

    checksum = options.checksum()
    parallel.processes()  # before the model: it gives each process its device
    pipe = options.load()
    if any_fitting:
        settings = replace(settings, detectors=compatible_detectors(pipe, settings.detectors))
    return run_detection(
        pipe,
        gathered,
        out=out,
        name=options.name,
        settings=settings,
        model_sha256=checksum,
        mitigation=None if options.mitigation is None else checksum_for(out, options.mitigation),
    )


def _planned_work(gathered: Gathered, settings: DetectSettings) -> dict[str, object]:
    from memorization.detection import make_detector
    from memorization.generation import Sampling

    sampling = Sampling(settings.num_inference_steps, settings.guidance_scale)  # rows do not depend on their batch
    each = {spec: make_detector(spec).cost(sampling) for spec in settings.detectors}
    return {
        "suspects": sum(item.role == "suspect" for item in gathered.items),
        "controls": sum(item.role == "control" for item in gathered.items),
        "rows in error": len(gathered.suspect_errors) + len(gathered.control_errors),
        "denoiser rows for a caption": {name: cost * settings.seeds for name, cost in each.items()},
        "denoiser rows at most": sum(each.values()) * settings.seeds * len(gathered.items),
    }


def _print_scores(summary: DetectSummary, out: Path, format: str) -> None:
    if format == "json":
        write_json(summary)
        return
    names = list(summary["detectors"])
    rows = sorted(summary["findings"].values(), key=lambda row: _rank(row, names[0]))
    cells = [
        [row["id"], row["prompt"][:CAPTION_WIDTH], _answer(row["flagged"]), *(_score(row["scores"][n]) for n in names)]
        for row in rows
    ]
    title = f"{summary['suspects']} captions, {summary['controls']} controls; * above the threshold"
    write_table(["id", "caption", "flagged", *names], cells, title=title)
    for name, entry in summary["detectors"].items():
        limit = entry["threshold"]
        value = "no threshold" if limit["value"] is None else f"threshold {limit['value']:.4g}"
        say(f"{name}: {value} ({limit['source']}){_alarms(limit['false_alarms'])}.")
    if summary["unscored"]:
        first = summary["unscored"][0]
        say(f"{len(summary['unscored'])} scores are unknown; the first: {first['key']}, {first['reason']}.")
    say(f"Every score: {out / 'summary.json'}")


def _rank(row: SuspectResult, name: str) -> float:
    value = row["scores"][name]["value"]
    return float("inf") if value is None else -float(value)


def _answer(flagged: bool | None) -> str | None:
    return None if flagged is None else ("yes" if flagged else "no")


def _score(entry: ScoreResult) -> str | None:
    if entry["value"] is None:
        return None
    return f"{entry['value']:.4g}{'*' if entry['flagged'] else ''}"


def _alarms(rate: Rate | None) -> str:
    if rate is None or rate["interval"] is None:
        return ""
    return f"; {rate['count']} of {rate['n']} controls above it, so at most {rate['interval'][1]:.0%} false alarms"
