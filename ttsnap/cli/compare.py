"""``diffkit ttsnap compare``: search strategies side by side at equal counted cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from diffkit.console import say, write_json, write_table
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
    Model,
    ModelConfig,
    Out,
    PreviewVae,
    Revision,
    Scheduler,
    Seed,
    Variant,
)
from ttsnap.cli.options import CopyGuard, HeldOut, Index, Negative, Steps

if TYPE_CHECKING:
    from ttsnap.evaluation.compare import Comparison

SEARCHES = "best-of-n,ttsp,ttsnap,halving,random,zero-order,fk"


def compare(
    prompts: Annotated[
        str, typer.Option(help="lab:held-out, lab:trio, lab:train, or a file: .txt (one a line), .json, .csv, .jsonl.")
    ] = "lab:held-out",
    model: Model = "lab",
    searches: Annotated[
        str,
        typer.Option(
            help="Names separated by commas, also lookahead, adaptive, index and index-mean; name@0.5 sets DDIM's eta."
        ),
    ] = SEARCHES,
    budget: Annotated[str, typer.Option(help="For each prompt: 16x (as much as best-of-16) or 3.2TFLOP.")] = "16x",
    reward: Annotated[str, typer.Option(help="Registered name of the reward of finished images.")] = "lab",
    held_out: HeldOut = None,
    noise_aware: Annotated[
        str, typer.Option(help="Judge of estimates: a registered name, a folder that distill wrote, or none.")
    ] = "lab-noise-aware",
    schedule: Annotated[
        str, typer.Option(help="For ttsnap, ttsp: 2:0.4,6:0.4,11:0.5 (the default), lab, lab-trio, or a file of fit.")
    ] = "",
    plain_schedule: Annotated[str | None, typer.Option(help="Another schedule for ttsp.")] = None,
    lookahead_schedule: Annotated[
        str | None, typer.Option(help="For lookahead, such as 1:0.06+3 (its own without).")
    ] = None,
    index: Index = None,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    negative: Negative = None,
    eta: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="DDIM's share of noise; fk takes 1 where it is 0.")
    ] = 0.0,
    preview_vae: PreviewVae = None,
    copy_guard: CopyGuard = None,
    group: Annotated[int, typer.Option(min=1, help="Prompts searched at once; in adaptive they share one budget.")] = 4,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Candidates run at once.")] = None,
    seed: Seed = 0,
    out: Out = None,
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
    """Run every search on every prompt with the same budget; write table, plot, pictures and a page.

    Needs a folder, --out; the same command resumes there. Several processes share the work under accelerate launch.
    Exit codes: 0 done; 2 wrong input; 3 some prompts could not be scored; 130 interrupted.
    """
    out = needed_folder(out, "A comparison", "runs/compare")
    from diffkit import parallel
    from diffkit.ledger import parse_budget
    from diffkit.prompts import read_prompts
    from ttsnap.cli.checksums import local_checksums
    from ttsnap.evaluation.compare import CompareSettings
    from ttsnap.evaluation.compare import compare as carry_out
    from ttsnap.evaluation.contenders import paired_reward, read_contenders
    from ttsnap.schedules.load import index_path, load_schedule

    parse_budget(budget)
    texts = read_prompts(prompts, limit)
    schedules = {name: load_schedule(text) if text else None for name, text in
                 (("", schedule), ("ttsp", schedule if plain_schedule is None else plain_schedule))}  # fmt: skip
    if lookahead_schedule is not None:
        schedules["lookahead"] = load_schedule(lookahead_schedule)
    contenders = read_contenders(searches, schedules=schedules, eta=eta, index=index)
    scorer = paired_reward(reward, None if noise_aware == "none" else noise_aware)
    first = parallel.is_first()  # before the model: it gives each process its device
    options = ModelOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        variant=variant,
        config=config,
        scheduler=scheduler,
    )
    pipe = options.load()
    settings = CompareSettings(budget, steps, guidance, negative, seed, group, micro_batch)
    origin = {
        "model": model, "revision": revision, "dtype": dtype, "prompts": texts, "searches": searches,
        "budget": budget, "reward": reward, "noise_aware": noise_aware, "steps": steps, "guidance": guidance,
        "negative": negative, "eta": eta, "seed": seed, "micro_batch": micro_batch, "preview_vae": preview_vae,
        "schedules": {key or "default": None if own is None else own.to_json() for key, own in schedules.items()},
        "sha256": local_checksums(model, reward=reward, held_out=held_out, noise_aware=noise_aware,
                                   preview_vae=preview_vae,
                                   index=None if index is None else index_path(index), copy_guard=copy_guard,
                                   model_config=config),
    }  # fmt: skip
    origin |= {name: text for name, text in (("held_out", held_out), ("copy_guard", copy_guard)) if text is not None}
    comparison = carry_out(
        pipe, texts, contenders, settings, reward=scorer, held_out_rewards=read_names(held_out or ""), out=out,
        origin=origin, preview_vae=preview_vae, copy_guard=copy_guard, dry=dry_run,
    )  # fmt: skip
    if dry_run:
        say(f"Would run {len(contenders)} searches on {len(texts)} prompts with {budget} each; nothing was run.")
        return
    if first:
        _print_comparison(comparison, format)
        if any(row["failed"] for row in comparison.rows):
            raise typer.Exit(ExitCode.ITEMS)


def _print_comparison(comparison: Comparison, format: str) -> None:
    if format == "json":
        write_json(comparison.rows)
        return
    write_table(
        *comparison.table(),
        title=f"{comparison.rows[0]['prompts']} prompts, in {comparison.folder}; intervals are 95 %",
    )
    say(f"The page is {comparison.folder / 'report.html'}.")
