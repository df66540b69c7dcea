"""``diffkit ttsnap collect``: record x0, previews and rewards of every step, for training and calibration."""

from __future__ import annotations

import json
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
    MicroBatch,
    Model,
    ModelConfig,
    Out,
    PreviewVae,
    Revision,
    Scheduler,
    Seed,
    Variant,
)
from ttsnap.cli.options import Negative, Steps

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.rewards.base import Reward
    from diffkit.step_plan import Plan
    from ttsnap.trajectories.recorder import CollectSettings


def collect(
    prompts: Annotated[
        str, typer.Option(help="lab:train, lab:trio-train, or a file: .txt (one a line), .json, .csv, .jsonl.")
    ] = "lab:train",
    model: Model = "lab",
    rewards: Annotated[str, typer.Option(help="Registered names of the rewards, separated by commas.")] = "lab",
    candidates: Annotated[int, typer.Option(min=1, help="Seeds for each prompt.")] = 8,
    steps: Steps = 20,
    guidance: Guidance = 3.0,
    negative: Negative = None,
    record: Annotated[
        str, typer.Option(help="Steps to keep: all, 2,4,6, every 2, or log-snr -6,-3,0 for the nearest levels.")
    ] = "all",
    lookahead: Annotated[
        str, typer.Option(help="Also score what lies ahead: after step 1 by 3 calls, after 3 by 2 is 1+3,3+2.")
    ] = "",
    micro_batch: MicroBatch = "8",
    previews: Annotated[bool, typer.Option(help="Keep the estimates' pictures, which training needs.")] = True,
    preview_vae: PreviewVae = None,
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
    """Record denoisings: seeds, noise levels, previews and rewards of every step and of the finished images.

    Needs a folder, --out; the same command resumes there. Several processes share the prompts under accelerate launch.
    Exit codes: 0 done; 2 wrong input; 3 some images could not be scored; 130 interrupted.
    """
    out = needed_folder(out, "A collection", "runs/trajectories")
    from diffkit import parallel
    from diffkit.micro_batch import read_micro_batch
    from diffkit.prompts import read_prompts
    from diffkit.rewards import load_reward
    from diffkit.step_plan import plan
    from ttsnap.trajectories.collect import CollectSettings
    from ttsnap.trajectories.collect import collect as carry_out
    from ttsnap.trajectories.recorded_lookahead import read_lookahead

    at_once = read_micro_batch(micro_batch)
    texts = read_prompts(prompts, limit)
    scorers = {name: load_reward(name) for name in _reward_names(rewards)}
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
    settings = CollectSettings(
        candidates, steps, guidance, negative,
        micro_batch=at_once, previews=previews, seed=seed, record=_steps(record, plan(pipe, steps)),
        lookahead=read_lookahead(lookahead),
    )  # fmt: skip
    if dry_run:
        _announce(pipe, texts, scorers, settings)
        return
    origin = _origin(options, preview_vae, rewards)
    trajectories = carry_out(pipe, texts, scorers, settings, out=out, origin=origin, preview_vae=preview_vae)
    if first:
        summary = json.loads((trajectories.folder / "summary.json").read_bytes())
        _print_alignment(summary, out, format)
        if any(reward["unscored"] for reward in summary["rewards"].values()):
            raise typer.Exit(ExitCode.ITEMS)


def _reward_names(text: str) -> tuple[str, ...]:
    names = read_names(text)
    if not names or len(set(names)) < len(names):
        raise InputError(f"--rewards takes different names separated by commas, got {text!r}.")
    return names


def _steps(text: str, steps: Plan) -> tuple[int, ...] | None:
    """The steps that ``--record`` names; None for all.

    ``every 2`` keeps each second step, counted so that the last one is among them.
    """
    from ttsnap.trajectories.dataset import steps_near

    words = text.strip().lower().split(maxsplit=1)
    try:
        if words == ["all"]:
            return None
        if words[0] == "every":
            return tuple(range((steps.calls - 1) % int(words[1]), steps.calls, int(words[1])))
        if words[0] == "log-snr":
            return steps_near(steps.sigmas, [float(level) for level in words[1].split(",")])
        return tuple(sorted({int(step) for step in text.split(",")}))
    except (ValueError, IndexError, ZeroDivisionError):
        raise InputError(f"Cannot read --record {text!r}; write all, 2,4,6, 'every 2' or 'log-snr -6,-3,0'.") from None


def _origin(options: ModelOptions, preview: str | None, rewards: str) -> dict[str, Any]:
    """What the run must not be resumed without: model, preview decoder and rewards, and checksums of local ones."""
    from diffkit.runs import sha256_folder
    from ttsnap.cli.checksums import checksum_of
    from ttsnap.trajectories.collect import REWARDS_SHA256

    origin: dict[str, Any] = {"model": options.model, "revision": options.revision, "dtype": options.dtype}
    origin["model_sha256"] = options.checksum()
    if preview is not None:
        local = Path(preview).expanduser()
        origin |= {"preview_vae": preview, "preview_sha256": sha256_folder(local) if local.is_dir() else None}
    checksum = checksum_of(rewards)
    return origin if checksum is None else origin | {REWARDS_SHA256: checksum}


def _announce(pipe: Pipeline, texts: list[str], rewards: dict[str, Reward], settings: CollectSettings) -> None:
    from diffkit.step_plan import plan

    steps = plan(pipe, settings.num_inference_steps)
    chosen = settings.resolved(steps)
    images = len(texts) * settings.candidates
    calls = images * (steps.calls + sum(calls for _, calls in chosen.lookahead))
    looks = images * (len(chosen.record or ()) + len(chosen.lookahead) + 1)
    say(
        f"Would record {len(texts)} prompts with {settings.candidates} seeds each: {calls} denoiser calls, {looks} "
        f"pictures decoded and scored by {', '.join(rewards)}; nothing was run."
    )


def _print_alignment(summary: dict[str, Any], out: Path, format: str) -> None:
    if format == "json":
        write_json(summary)
        return
    names = list(summary["rewards"])
    rows: list[list[object]] = [
        [step, _figure(sigma), _figure(level), *(_figure(summary["rewards"][name]["tau"][row]) for name in names)]
        for row, (step, sigma, level) in enumerate(
            zip(summary["steps"], summary["sigmas"], summary["log_snrs"], strict=True)
        )
    ]
    rows += [
        [f"{step}+{calls}", None, None, *(_figure(summary["rewards"][name]["lookahead_tau"][row]) for name in names)]
        for row, (step, calls) in enumerate(summary.get("lookahead", ()))
    ]
    title = f"{summary['prompts']} prompts, {summary['candidates']} candidates each, in {out}"
    write_table(["step", "sigma", "log-SNR", *(f"tau of {name} to its final" for name in names)], rows, title=title)


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
