"""``diffkit locality``: do the triggers of one image agree, more than their nulls?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
from diffkit.exit_codes import ExitCode
from diffkit.model_options import ModelOptions
from diffkit.option_values import needed_folder, read_names
from diffkit.options import (
    Debug,
    Device,
    DryRun,
    Dtype,
    Format,
    Guidance,
    Limit,
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
from memorization.cli.items import gather_items, print_plan, print_row_errors
from memorization.cli.options import LimitControls, Steps

if TYPE_CHECKING:
    from memorization.items import Gathered
    from memorization.locality.settings import LocalitySettings
    from memorization.presets import Preset as Defaults

app = typer.Typer(add_completion=False)


@app.command()
def locality(
    model: Model = "lab",
    suspects: Annotated[
        str,
        typer.Option("--suspects", "-s", help="lab:planted, gallery:planted, a folder, a .csv or .jsonl; with images."),
    ] = "lab:planted",
    controls: Annotated[
        str, typer.Option("--controls", "-c", help="Images the model cannot have seen, in the same forms; or none.")
    ] = "lab:controls",
    out: Out = None,
    starts: Annotated[int, typer.Option(min=2, help="Gaussian starts for each image; the paper took 100.")] = 20,
    attack_steps: Annotated[int, typer.Option(min=1, help="Steps of the attack from each start.")] = 50,
    group: Annotated[int, typer.Option(min=2, help="Embeddings in every group that is compared.")] = 8,
    lines: Annotated[int, typer.Option(min=1, help="Pairs of triggers for each image joined by lines.")] = 4,
    methods: Annotated[str, typer.Option(help="Whose selected weights to compare: nemo, wanda, or none.")] = (
        "nemo,wanda"
    ),
    theta: Annotated[float, typer.Option(help="NeMo's threshold, in deviations.")] = 3.0,
    sparsity: Annotated[float, typer.Option(help="Wanda's share of columns.")] = 0.01,
    generations: Annotated[int, typer.Option(min=1, help="Images from each embedding.")] = 3,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    threshold: Annotated[float | None, typer.Option(help="Of the copy detector; calibrated by default.")] = None,
    ordinary: Annotated[
        str | None, typer.Option(help="Captions of nothing memorized, hundreds: a .txt, one a line, or another list.")
    ] = None,
    preset: Preset = "auto",
    mitigation: Mitigation = None,
    save_triggers: Annotated[
        bool, typer.Option("--save-triggers", help="Keep the embeddings found. They bring images back: sensitive.")
    ] = False,
    micro_batch: Annotated[int, typer.Option(min=1, help="Images generated, and starts attacked, at once.")] = 16,
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
    """Attack each image from many Gaussian starts and compare what the triggers have in common.

    Distances, displacements, activations and the weights that NeMo and Wanda select, each against its nulls.
    The same command resumes in --out.
    Exit codes: 0 done; 2 wrong input; 3 some images could not be scored; 130 interrupted.
    """
    from memorization.locality.settings import LocalitySettings
    from memorization.presets import choose_preset

    gathered = gather_items(suspects, controls, limit=limit, limit_controls=limit_controls)
    settings = LocalitySettings(
        starts=starts,
        attack_steps=attack_steps,
        group=group,
        lines=lines,
        methods=tuple(name for name in read_names(methods) if name != "none"),
        theta=theta,
        sparsity=sparsity,
        generations=generations,
        num_inference_steps=steps,
        guidance_scale=guidance,
        threshold=threshold,
        seed=seed,
        micro_batch=micro_batch,
        ordinary=_ordinary(ordinary, choose_preset(preset, model)),
    )
    options = ModelOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        variant=variant,
        config=config,
        scheduler=scheduler,
        mitigation=mitigation,
    )
    if dry_run:
        options.check()
        print_row_errors(gathered, None)
        print_plan(_planned_work(gathered, settings), format)
        return
    out = needed_folder(out, "A locality study", "runs/locality")
    print_row_errors(gathered, out)
    summary = _run(gathered, settings, options, out, save_triggers)
    _print_agreement(summary, out, format)
    raise typer.Exit(ExitCode.ITEMS if summary["images"]["unscored"] or gathered.suspect_errors else ExitCode.DONE)


def _run(
    gathered: Gathered,
    settings: LocalitySettings,
    options: ModelOptions,
    out: Path,
    save_triggers: bool,
) -> dict[str, Any]:
    from diffkit.mitigation.record import checksum_for
    from memorization.locality.study import study

    result = study(
        options.load(),
        gathered,
        out=out,
        model=options.name,
        settings=settings,
        model_sha256=options.checksum(),
        mitigation=None if options.mitigation is None else checksum_for(out, options.mitigation),
        save_triggers=save_triggers,
    )
    return result.summary


def _ordinary(source: str | None, preset: Defaults) -> tuple[str, ...]:
    from memorization.mitigation.reference_captions import ordinary_captions

    if source is None and preset.ordinary_captions is None:
        raise InputError("Locality compares with captions of nothing memorized: give a list, --ordinary FILE.")
    return ordinary_captions(source, preset=preset, n=1000)


def _planned_work(gathered: Gathered, settings: LocalitySettings) -> dict[str, int]:
    images = sum(bool(item.suspect.images) for item in gathered.items)
    return {
        "suspects": sum(item.role == "suspect" for item in gathered.items),
        "controls": sum(item.role == "control" for item in gathered.items),
        "rows in error": len(gathered.suspect_errors) + len(gathered.control_errors),
        "searches": images * settings.starts,
        "sample gradients": images * settings.starts * settings.attack_steps * settings.draws,
    }


def _print_agreement(summary: dict[str, Any], out: Path, format: str) -> None:
    if format == "json":
        write_json(summary)
        return
    images = summary["images"]
    names = ["others", "control", "starts", "captions", "ordinary", "chance"]
    rows = [[what, *(words.get(name) for name in names)] for what, words in summary["reading"].items()]
    title = f"Triggers of one image, against each null: {images['memorized']} of {images['suspects']} suspects"
    write_table([title, *names], rows)
    say(f"Report: {out / 'report.html'}")
