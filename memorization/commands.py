"""``diffkit audit``: which of these images does the model hold?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
from diffkit.lab.assets import MODELS as LAB_MODELS
from diffkit.options import Debug, Device, DryRun, Dtype, Format, Limit, Model, Out, Revision, Seed

if TYPE_CHECKING:
    from memorization.items import Gathered
    from memorization.settings import AuditSettings

app = typer.Typer(add_completion=False, subcommand_metavar="[COMMAND ...]")

EXIT_FAIL_ON, EXIT_ITEMS = 1, 3

FailOn = Literal["never", "replicated", "retained", "inconclusive"]
#: What each level of --fail-on includes.
FAILING: dict[FailOn, tuple[str, ...]] = {
    "never": (),
    "replicated": ("replicated",),
    "retained": ("replicated", "retained"),
    "inconclusive": ("replicated", "retained", "inconclusive"),
}


@app.callback(invoke_without_command=True)
def audit(
    context: typer.Context,
    model: Model = "lab",
    suspects: Annotated[
        str, typer.Option("--suspects", "-s", help="lab:planted, a folder, a .csv, .jsonl or .txt of captions.")
    ] = "lab:planted",
    controls: Annotated[
        str, typer.Option("--controls", "-c", help="Images the model cannot have seen, in the same forms; or none.")
    ] = "lab:controls",
    out: Out = None,
    budgets: Annotated[str, typer.Option(help="Attack steps at which to look, from 0.")] = "0,1,10,25,50",
    starts: Annotated[str, typer.Option(help="Where the attack begins: other, gaussian, prompt.")] = "other,gaussian",
    generations: Annotated[int, typer.Option(min=1, help="Images from each caption.")] = 10,
    attack_generations: Annotated[int, typer.Option(min=1, help="Images from each trigger and budget.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, help="Guidance scale.")] = 3.0,
    alpha: Annotated[float, typer.Option(help="Level of the pre-set budget and of the corrected p-values.")] = 0.05,
    correction: Annotated[
        Literal["bh", "holm", "none"], typer.Option(help="For many suspects: Benjamini-Hochberg, Holm, or none.")
    ] = "bh",
    copies: Annotated[str, typer.Option(help="Copy detector.")] = "tiled",
    threshold: Annotated[float | None, typer.Option(help="Its threshold; calibrated by default.")] = None,
    other_captions: Annotated[
        Path | None, typer.Option(help="Text file of unrelated captions to begin at, one a line.", dir_okay=False)
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit 1 if a suspect is this or worse.")] = "never",
    save_triggers: Annotated[
        bool, typer.Option("--save-triggers", help="Keep the embeddings found. They bring images back: sensitive.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Suspects or controls attacked at once.")] = 4,
    micro_batch: Annotated[int, typer.Option(min=1, help="Images generated at once.")] = 16,
    limit: Limit = None,
    limit_controls: Annotated[int | None, typer.Option(min=0, help="Take only the first so many controls.")] = None,
    seed: Seed = 0,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Audit a model for images it has memorized.

    Each suspect is generated from its caption and attacked with text embeddings (DoRI); the same attack runs on the
    controls, and what counts is what the controls do not show. Needs a folder, --out; the same command resumes there.
    Exit codes: 0 done; 1 --fail-on met; 2 wrong input; 3 some items could not be scored; 130 interrupted.
    """
    if context.invoked_subcommand is not None:
        return
    from memorization.items import gather
    from memorization.settings import AuditSettings

    settings = AuditSettings(
        budgets=_numbers(budgets),
        starts=tuple(part.strip() for part in starts.split(",") if part.strip()),
        generations=generations,
        attack_generations=attack_generations,
        num_inference_steps=steps,
        guidance_scale=guidance,
        alpha=alpha,
        correction=correction,
        copies=copies,
        threshold=threshold,
        seed=seed,
        items_at_once=batch,
        micro_batch=micro_batch,
        other_captions=_other_captions(other_captions, model),
    )
    source = None if controls == "none" else controls
    gathered = gather(suspects, source, limit=limit, limit_controls=limit_controls)
    if dry_run:
        _show_plan(gathered, settings, format)
        return
    if out is None:
        raise InputError("An audit needs a folder for its results: add --out runs/audit.")
    for error in [*gathered.suspect_errors, *gathered.control_errors][:10]:
        say(f"{error.source}, row {error.row}: {error.reason}")
    summary = _run(gathered, settings, model, revision, dtype, device, out, save_triggers)
    _show(summary, out, format)
    raise typer.Exit(exit_code(summary, fail_on))


def _run(
    gathered: Gathered,
    settings: AuditSettings,
    model: str,
    revision: str | None,
    dtype: str,
    device: str,
    out: Path,
    save_triggers: bool,
) -> dict[str, Any]:
    from diffkit.lab.assets import model_path
    from diffkit.loading import load_pipeline
    from diffkit.runs import sha256_folder
    from memorization.audit import audit as run_audit

    folder = model_path(model) if model in LAB_MODELS else Path(model)
    checksum = sha256_folder(folder) if folder.is_dir() else None
    pipe = load_pipeline(model, revision=revision, dtype=dtype, device=device)
    name = model if revision is None else f"{model}@{revision}"
    result = run_audit(
        pipe, gathered, out=out, model=name, settings=settings, model_sha256=checksum, save_triggers=save_triggers
    )
    return result.summary


def exit_code(summary: dict[str, Any], fail_on: FailOn) -> int:
    """1 when a verdict of the asked-for level occurs, else 3 when something could not be scored, else 0."""
    from memorization.summary import items_in_error

    if any(summary["verdicts"][verdict] for verdict in FAILING[fail_on]):
        return EXIT_FAIL_ON
    return EXIT_ITEMS if items_in_error(summary) else 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"Expected budgets such as 0,1,10,25,50, got {text!r}.") from None


def _other_captions(path: Path | None, model: str) -> tuple[str, ...] | None:
    """Captions from a file; for the lab held-out scenes, since it knows no other words; else the built-in ones."""
    if path is not None:
        if not path.is_file():
            raise InputError(f"There is no file {path} with unrelated captions.")
        lines = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        if not lines:
            raise InputError(f"{path} holds no captions.")
        return lines
    if model not in LAB_MODELS:
        return None
    from diffkit.lab.world import training_scenes

    return tuple(scene.caption for scene in training_scenes(8, seed=2024))


def _show_plan(gathered: Gathered, settings: AuditSettings, format: str) -> None:
    items = gathered.items
    with_image = sum(bool(item.suspect.images) for item in items)
    triggers = with_image * len(settings.starts) * len(settings.budgets)
    plan = {
        "suspects": sum(item.role == "suspect" for item in items),
        "controls": sum(item.role == "control" for item in items),
        "rows in error": len(gathered.suspect_errors) + len(gathered.control_errors),
        "items without an image": len(items) - with_image,
        "images from captions": len(items) * settings.generations,
        "images from triggers": triggers * settings.attack_generations,
        "sample gradients": with_image * len(settings.starts) * settings.budgets[-1] * settings.draws,
    }
    if format == "json":
        write_json(plan)
    else:
        write_table(["would be done", "count"], list(plan.items()))


def _show(summary: dict[str, Any], out: Path, format: str) -> None:
    if format == "json":
        write_json(summary)
        return
    rows = [
        [verdict, count, _interval(summary["rates"][verdict])]
        for verdict, count in summary["verdicts"].items()
        if count
    ]
    budget = summary["budget"]
    title = f"{summary['suspects']} suspects" + (f", attack judged at budget {budget}" if budget else "")
    write_table(["verdict", "suspects", "share (95 % interval)"], rows, title=title)
    controls = summary["controls"]
    if controls["failure"]:
        say(f"Controls: {controls['failure']}.")
    else:
        say(f"Controls flagged: {controls['flagged']['count']} of {controls['flagged']['n']}.")
    say(f"Report: {out / 'report.html'}")


def _interval(rate: dict[str, Any]) -> str:
    if rate["share"] is None:
        return "–"
    low, high = rate["interval"]
    return f"{rate['share']:.0%} ({low:.0%} to {high:.0%})"
