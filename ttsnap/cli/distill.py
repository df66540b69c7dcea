"""``diffkit ttsnap distill``: teach a reward what estimates at every noise level are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
from diffkit.option_values import needed_folder
from diffkit.options import Debug, DryRun, Format, Out, Seed
from ttsnap.cli.options import TrajectoriesFolder

if TYPE_CHECKING:
    from ttsnap.noise_aware.distill import Distilled


def distill(
    trajectories: TrajectoriesFolder,
    reward: Annotated[str, typer.Option(help="Registered name of a reward that can be trained.")] = "lab",
    backend: Annotated[
        Literal["conditioned", "full", "lora"],
        typer.Option(help="One network for all levels, all weights a level, or an adapter a level."),
    ] = "conditioned",
    loss: Annotated[
        Literal["preference", "mse"], typer.Option(help="On pairs within prompts, or on scores.")
    ] = "preference",
    standardise: Annotated[bool, typer.Option(help="One mean and spread of the targets for every prompt.")] = False,
    levels: Annotated[str, typer.Option(help="Recorded steps to train on: all but the last, or 0,2,4-8.")] = "all",
    stages: Annotated[int, typer.Option(min=1, help="Stages of the curriculum of conditioned.")] = 4,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the images in a stage.")] = 4.0,
    steps_per_stage: Annotated[int | None, typer.Option(min=1, help="Updates in a stage, instead of epochs.")] = None,
    learning_rate: Annotated[float, typer.Option(help="At the beginning of a stage; it falls to half.")] = 3e-4,
    batch: Annotated[int, typer.Option(min=1, help="Images an update, over all processes.")] = 64,
    accumulate: Annotated[int, typer.Option(min=1, help="Parts a process does its share of a batch in.")] = 1,
    held_out: Annotated[float, typer.Option(min=0.0, max=0.9, help="Share of the prompts kept for the table.")] = 0.15,
    temperature: Annotated[
        float, typer.Option(help="Of the preference loss, in standard deviations within prompts.")
    ] = 0.5,
    hard: Annotated[bool, typer.Option(help="Preferences are yes or no, not graded.")] = False,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters of lora.")] = 8,
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], typer.Option(help="Of the training.")] = "no",
    tracker: Annotated[
        str | None, typer.Option(help="Log the losses by accelerate: tensorboard, wandb, ...; off by default.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Print Kendall's tau to the final reward before and after, level by level, on prompts that were not trained on.

    Needs a folder, --out; the model is in its folder model/. The same command resumes there, inside a stage too.
    Several processes: accelerate launch -m diffkit ttsnap distill ...
    Exit codes: 0 done; 2 wrong input; 130 interrupted.
    """
    out = needed_folder(out, "A distillation", "runs/distilled")
    from diffkit.rewards import load_reward
    from diffkit.rewards.base import TrainableReward
    from ttsnap.noise_aware.curriculum import DistillSettings, choose_steps, curriculum
    from ttsnap.trajectories.dataset import Trajectories

    settings = DistillSettings(
        backend=backend, loss=loss, standardise=standardise, steps=parse_levels(levels), stages=stages, epochs=epochs,
        steps_per_stage=steps_per_stage, learning_rate=learning_rate, batch=batch, accumulate=accumulate,
        held_out=held_out, temperature=temperature, soft=not hard, rank=rank, mixed_precision=mixed_precision,
        seed=seed,
    )  # fmt: skip
    recorded = Trajectories.open(trajectories)
    base = load_reward(reward)
    if not isinstance(base, TrainableReward):
        raise InputError(f"The reward {reward!r} has no network to train; see diffkit.rewards.base.TrainableReward.")
    if dry_run:
        steps = choose_steps(recorded, settings.steps)
        count = len(curriculum(backend, len(steps), stages))
        say(f"Would distil {reward} on {len(recorded)} prompts, steps {steps}, in {count} stages; nothing was run.")
        return
    from accelerate import PartialState

    from ttsnap.noise_aware.distill import distill as carry_out

    distilled = carry_out(recorded, base, settings, out=out, tracker=tracker)
    if PartialState().is_main_process:
        _print_levels(distilled, out, format)


def parse_levels(text: str) -> tuple[int, ...] | None:
    """Step indices from text such as ``0,2,4-8``; None for ``all``.

    Raises:
        InputError: it is neither.
    """
    if text.strip() == "all":
        return None
    steps: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InputError(f"Expected 'all' or step indices such as 0,2,4-8 for --levels, got {text!r}.")
        steps += range(int(first), int(last or first) + 1)
    if not steps:
        raise InputError(f"--levels {text!r} names no step.")
    return tuple(sorted(set(steps)))


def _print_levels(distilled: Distilled, out: Path, format: str) -> None:
    from dataclasses import asdict

    from ttsnap.noise_aware.distill import HEADERS

    if format == "json":
        write_json([asdict(level) for level in distilled.levels])
        return
    write_table(HEADERS, distilled.table())
    say(f"The reward is in {out / 'model'}, the picture in {out / 'tau.png'}.")
