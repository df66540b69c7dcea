"""``diffkit ttsnap generate``: the best image of many seeds for each prompt, by reward, within a budget."""

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
    Model,
    ModelConfig,
    Out,
    PreviewVae,
    Revision,
    Scheduler,
    Seed,
    Variant,
)
from ttsnap.cli.collect import collect
from ttsnap.cli.compare import compare
from ttsnap.cli.distill import distill
from ttsnap.cli.fit import fit
from ttsnap.cli.options import CopyGuard, HeldOut, Index, Negative, Steps
from ttsnap.cli.rescore import rescore
from ttsnap.cli.simulate import simulate

if TYPE_CHECKING:
    from ttsnap.pipeline import TTSnapPipeline

app = typer.Typer(add_completion=False, no_args_is_help=True)
app.command()(collect)
app.command()(compare)
app.command()(distill)
app.command()(fit)
app.command()(rescore)
app.command()(simulate)


@app.callback()
def ttsnap() -> None:
    """Search the seed whose image a reward likes best, pruning weak seeds in the middle of denoising."""


@app.command()
def generate(
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="What to show.")] = None,
    prompts_file: Annotated[
        str | None,
        typer.Option("--prompts", help="More prompts: a .txt, one a line, .csv, .tsv, .json, .jsonl or lab:..."),
    ] = None,
    model: Model = "lab",
    reward: Annotated[str, typer.Option(help="Registered name of the reward.")] = "lab",
    held_out: HeldOut = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Seeds to try for each prompt; 16 by default.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Instead of --candidates, for each prompt: 16x (best-of-16), 3.2TFLOP or 40s.")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            help="Looks and shares to keep, 2:0.4,6:0.4,11:0.5; 1:0.06+3 looks 3 calls ahead; or a .json file, or the "
            "name of a shipped one (lab); without it best-of-N."
        ),
    ] = "",
    search: Annotated[
        str | None,
        typer.Option(help="Instead of pruning by --schedule: lookahead, adaptive, halving, fk ...; needs a --budget."),
    ] = None,
    index: Index = None,
    group: Annotated[int, typer.Option(min=1, help="With --search adaptive: prompts that share one budget.")] = 8,
    enough: Annotated[
        float | None, typer.Option(help="Reward at which a prompt is done; the budget is then the most it may cost.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="With --enough: equal parts of the budget, on fresh seeds.")] = 4,
    preview_vae: PreviewVae = None,
    copy_guard: CopyGuard = None,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    negative: Negative = None,
    height: Annotated[int | None, typer.Option(min=8, help="Pixels; the model's own by default.")] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Pixels; the model's own by default.")] = None,
    winners: Annotated[int, typer.Option(min=1, help="Images to keep for each prompt.")] = 1,
    diversity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="With --winners: how much it counts that they differ.")
    ] = 0.0,
    micro_batch: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Candidates run at once; 1 is bit-exact; auto: the most that fit."),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    limit: Limit = None,
    revision: Revision = None,
    variant: Variant = None,
    model_config: ModelConfig = None,
    scheduler: Scheduler = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Save the winners of each prompt as PNG, with their seeds, rewards, the looks and the counted cost.

    Needs a folder, --out; the same command resumes there. Several processes share the work under accelerate launch.
    Exit codes: 0 done; 2 wrong input; 3 some prompts could not be scored; 130 interrupted.
    """
    from diffkit.micro_batch import read_micro_batch
    from ttsnap.cli.checksums import local_checksums
    from ttsnap.schedules.load import index_path

    texts = _prompts(prompts, prompts_file)[:limit]
    config: dict[str, Any] = {
        "prompts": texts, "model": model, "revision": revision, "dtype": dtype, "reward": reward,
        "candidates": candidates, "budget": budget, "schedule": schedule, "steps": steps, "guidance": guidance,
        "negative": negative, "winners": winners, "seed": seed,
        "micro_batch": None if micro_batch is None else read_micro_batch(micro_batch),
    }  # fmt: skip
    optional = {
        "height": height, "width": width, "preview_vae": preview_vae, "copy_guard": copy_guard, "enough": enough,
        "held_out": held_out, "diversity": diversity or None, "search": search, "index": index,
    }  # fmt: skip
    config |= {name: value for name, value in optional.items() if value is not None}
    if enough is not None:
        config["rounds"] = rounds
    if search == "adaptive":
        config["group"] = group
    out = needed_folder(out, "A search", "runs/search")
    config["sha256"] = local_checksums(
        model,
        preview_vae=preview_vae,
        copy_guard=copy_guard,
        reward=reward.partition(":")[2],
        held_out=held_out,
        schedule=schedule if schedule.endswith(".json") else None,
        index=None if index is None else index_path(index),
        model_config=model_config,
    )
    options = ModelOptions(
        model=model,
        revision=revision,
        dtype=dtype,
        device=device,
        variant=variant,
        config=model_config,
        scheduler=scheduler,
    )
    pipe = _load(config, options)
    if dry_run:
        say(f"Would search {len(texts)} prompts with {model} and the reward {reward}; nothing was run.")
        return
    from ttsnap.cli.generate_run import generate as carry_out

    items = carry_out(pipe, texts, config, out)
    if items is None:
        return
    _print_winners(items, out, format)
    if any(item["error"] is not None for item in items):
        raise typer.Exit(ExitCode.ITEMS)


def _prompts(given: list[str] | None, source: str | None) -> list[str]:
    from diffkit.prompts import read_prompts

    prompts = [*(given or []), *([] if source is None else read_prompts(source))]
    if not prompts:
        raise InputError("There is no prompt; write one, or give a file with --prompts.")
    return prompts


def _load(config: dict[str, Any], options: ModelOptions) -> TTSnapPipeline:
    """The pipeline, after everything that can be checked without it."""
    from diffkit import parallel
    from diffkit.families import default_size
    from diffkit.ledger import parse_budget
    from diffkit.rewards import load_reward
    from diffkit.step_plan import plan
    from ttsnap.cli.named_search import search_of
    from ttsnap.pipeline import TTSnapPipeline
    from ttsnap.schedules.load import load_schedule
    from ttsnap.search.held_out import load_held_out

    parallel.processes()  # before the model: it gives each process its device
    schedule = load_schedule(config["schedule"])
    if config["budget"] is not None:
        parse_budget(config["budget"])
        if config["candidates"] is not None:
            raise InputError("--budget chooses the number of candidates; leave out --candidates.")
    search_of(config)
    reward = load_reward(config["reward"])
    load_held_out(read_names(config.get("held_out", "")), reward)
    pipe = TTSnapPipeline.from_pipe(
        options.load(), reward=reward, preview_vae=config.get("preview_vae"), copy_guard=config.get("copy_guard")
    )
    own = default_size(pipe)
    steps = plan(pipe, config["steps"], (config.get("height", own.height), config.get("width", own.width)))
    looks = schedule.resolve(steps.calls)
    looks.validate(steps.calls)
    steps.check_looks(looks.steps)
    return pipe


def _print_winners(items: list[dict[str, Any]], out: Path, format: str) -> None:
    if format == "json":
        write_json(items)
        return
    rows: list[list[object]] = []
    for item in items:
        if item["error"] is not None:
            rows.append([item["prompt"], None, None, None, None, item["error"]])
        for winner in item["winners"]:
            calls, full = item["ledger"]["calls"], item["ledger"]["without_pruning"]["calls"]
            if "group" in item:  # the ledger is of all its prompts
                calls, full = item["cost"]["calls"], item["candidates"] * (item["trace"][-1]["step"] + 1)
            cost = f"{calls} of {full} calls"
            dropped = [f"{item[name]} {name}" for name in ("flagged", "copies") if item.get(name)]
            tried = ", ".join([str(item["candidates"]), *dropped])
            black = " (black: flagged by the safety checker)" if winner.get("flagged") else ""
            image = f"{out / winner['image']}{black}"
            held_out = [
                f"{name} {value:.4f}" for name, value in winner.get("held_out", {}).items() if value is not None
            ]
            score = ", ".join([f"{winner['reward']:.4f}", *held_out])
            rows.append([item["prompt"], tried, winner["seed"], score, cost, image])
    write_table(["prompt", "candidates", "seed", "reward", "cost", "image"], rows)
