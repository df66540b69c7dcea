"""``diffkit mitigate``: make a reversible mitigation of a model against suspects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
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
    Model,
    ModelConfig,
    Out,
    Preset,
    Revision,
    Scheduler,
    Variant,
)
from memorization.cli.items import print_row_errors
from memorization.cli.options import Suspects

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.mitigation import Mitigation
    from memorization.items import AuditItem
    from memorization.mitigation import Method

app = typer.Typer(add_completion=False)


@app.command()
def mitigate(
    method: Annotated[str, typer.Argument(help="nemo, wanda, prune, adversarial, prompt-guard, attention-guard, ...")],
    model: Model = "lab",
    lora: Lora = None,
    suspects: Suspects = "lab:planted",
    out: Out = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, name=value; may be repeated.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", help="Ids of the suspects to take, comma separated.")] = None,
    preset: Preset = "auto",
    save_pipeline: Annotated[
        Path | None, typer.Option("--save-pipeline", file_okay=False, help="Also write the whole mitigated pipeline.")
    ] = None,
    limit: Limit = None,
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
    """Make a mitigation of a model against suspects, in a folder that --mitigation of other commands takes.

    The model itself is not changed. --dry-run shows the method's settings. The same command resumes in --out.
    Exit codes: 0 done; 2 wrong input; 130 interrupted.
    """
    from memorization.items import gather
    from memorization.mitigation import methods
    from memorization.mitigation.run import parse_settings
    from memorization.presets import choose_preset

    chosen = methods.get(method)
    settings = parse_settings(chosen, set_ or [], choose_preset(preset, model))
    gathered = gather(suspects, None)
    selected = _take(gathered.items, only)[:limit]
    options = ModelOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        variant=variant,
        config=config,
        scheduler=scheduler,
        lora=lora,
    )
    if dry_run:
        options.check()
        print_row_errors(gathered, None)
        _print_plan(chosen, settings, len(selected), format)
        return
    out = needed_folder(out, "A mitigation", "runs/mitigation")
    if save_pipeline is not None and chosen.kind not in ("mask", "delta"):
        raise InputError(f"A {chosen.kind} does not become part of the weights; leave --save-pipeline out.")
    from diffkit.mitigation import apply_mitigation
    from memorization.mitigation.run import mitigate as run

    print_row_errors(gathered, out)
    pipe = options.load()
    mitigation = run(
        pipe,
        gathered._replace(items=selected),
        chosen,
        out=out,
        settings=settings,
        preset=preset,
        name=options.name,
        model_sha256=options.checksum(),
    )
    if save_pipeline is not None and not _save_shrunk(pipe, mitigation, save_pipeline):
        with apply_mitigation(pipe, mitigation):
            pipe.save_pretrained(save_pipeline, safe_serialization=True)
    _print_mitigation(mitigation, out, format)


def _save_shrunk(pipe: Pipeline, mitigation: Mitigation, folder: Path) -> bool:
    """Write the pipeline without the units that the mitigation switches off; False where that cannot be, with why."""
    if mitigation.settings.get("structure") != "channels":
        return False
    from diffkit.mitigation.save_shrunk import save_shrunk
    from diffkit.mitigation.shrink import shrink

    try:
        with shrink(pipe, mitigation):
            save_shrunk(pipe, folder)
    except InputError as error:
        say(f"{folder} holds the pruned model in its whole size. {error}")
        return False
    return True


def _take(items: list[AuditItem], only: str | None) -> list[AuditItem]:
    """The suspects of these ids, in their own order."""
    if only is None:
        return items
    ids = read_names(only)
    missing = [name for name in ids if name not in {item.suspect.id for item in items}]
    if missing or not ids:
        raise InputError(f"There is no suspect {(missing or [only])[0]!r} to take by --only.")
    return [item for item in items if item.suspect.id in ids]


def _print_plan(method: Method, settings: Any, suspects: int, format: str) -> None:
    from dataclasses import asdict

    plan = {"method": method.name, "kind": method.kind, "suspects": suspects, "settings": asdict(settings)}
    if format == "json":
        write_json(plan)
    else:
        rows = [["suspects", suspects], *([name, value] for name, value in asdict(settings).items())]
        write_table(["setting", "value"], rows, title=f"{method.name} gives a {method.kind}")


def _print_mitigation(mitigation: Mitigation, out: Path, format: str) -> None:
    if format == "json":
        write_json(mitigation.card())
        return
    rows = [[name, value] for name, value in mitigation.figures.items() if not isinstance(value, (dict, list))]
    title = f"{mitigation.method}, a {mitigation.kind}"
    write_table(["figure", "value"], [["suspects", len(mitigation.suspects)], *rows], title=title)
    say(f"Apply it with --mitigation {out}.")
