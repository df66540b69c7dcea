"""``diffkit ttsnap compare``: search strategies side by side at equal counted cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.console import say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, Device, DryRun, Dtype, Format, Limit, Model, Out, PreviewVae, Revision, Seed

if TYPE_CHECKING:
    from diffkit.rewards.base import Reward

EXIT_ITEMS = 3
SEARCHES = "best-of-n,ttsp,ttsnap,halving,random,zero-order,fk"


def compare(
    prompts: Annotated[
        str, typer.Option(help="lab:held-out, lab:trio, lab:train, or a file: .txt (one a line), .json, .csv, .jsonl.")
    ] = "lab:held-out",
    model: Model = "lab",
    searches: Annotated[
        str, typer.Option(help="Names separated by commas, also index and index-mean; name@0.5 sets DDIM's eta.")
    ] = SEARCHES,
    budget: Annotated[str, typer.Option(help="For each prompt: 16x (as much as best-of-16) or 3.2TFLOP.")] = "16x",
    reward: Annotated[str, typer.Option(help="Registered name of the reward of finished images.")] = "lab",
    noise_aware: Annotated[
        str, typer.Option(help="Judge of estimates: a registered name, a folder that distill wrote, or none.")
    ] = "lab-noise-aware",
    schedule: Annotated[
        str, typer.Option(help="For ttsnap, ttsp: 2:0.4,6:0.4,11:0.5 (the default), lab, lab-trio, or a file of fit.")
    ] = "",
    plain_schedule: Annotated[str | None, typer.Option(help="Another schedule for ttsp.")] = None,
    index: Annotated[Path | None, typer.Option(help="The file that fit --rule index wrote, for index.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, help="Guidance scale.")] = 3.0,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    eta: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="DDIM's share of noise; fk takes 1 where it is 0.")
    ] = 0.0,
    preview_vae: PreviewVae = None,
    group: Annotated[int, typer.Option(min=1, help="Prompts searched at once; they share micro-batches.")] = 4,
    micro_batch: Annotated[int | None, typer.Option(min=1, help="Candidates run at once.")] = None,
    seed: Seed = 0,
    out: Out = None,
    limit: Limit = None,
    revision: Revision = None,
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
    if out is None:
        raise InputError("There is no folder for the results; give one with --out, for example --out runs/compare.")
    from diffkit import parallel
    from diffkit.ledger import parse_budget
    from diffkit.loading import load_pipeline
    from diffkit.prompts import read_prompts
    from ttsnap.evaluation.compare import CompareSettings
    from ttsnap.evaluation.compare import compare as carry_out
    from ttsnap.evaluation.contenders import read_contenders
    from ttsnap.pipeline import TTSnapPipeline
    from ttsnap.schedules.load import load_schedule
    from ttsnap.search.preview_decoder import load_preview_vae

    parse_budget(budget)
    texts = read_prompts(prompts, limit)
    schedules = {name: load_schedule(text) if text else None for name, text in
                 (("", schedule), ("ttsp", schedule if plain_schedule is None else plain_schedule))}  # fmt: skip
    contenders = read_contenders(searches, schedules=schedules, eta=eta, index=index)
    scorer = _reward(reward, noise_aware)
    first = parallel.is_first()  # before the model: it gives each process its device
    pipe = TTSnapPipeline.from_pipe(load_pipeline(model, revision=revision, dtype=dtype, device=device))
    pipe.set_progress_bar_config(disable=True)
    preview = None if preview_vae is None else load_preview_vae(preview_vae, pipe)
    settings = CompareSettings(budget, steps, guidance, negative, seed, group, micro_batch)
    origin = {
        "model": model, "revision": revision, "dtype": dtype, "prompts": texts, "searches": searches,
        "budget": budget, "reward": reward, "noise_aware": noise_aware, "steps": steps, "guidance": guidance,
        "negative": negative, "eta": eta, "seed": seed, "micro_batch": micro_batch, "preview_vae": preview_vae,
        "schedules": {name or "default": None if one is None else one.to_json() for name, one in schedules.items()},
        "sha256": _checksums(model, noise_aware, preview_vae, index),
    }  # fmt: skip
    found = carry_out(
        pipe, texts, contenders, scorer, settings, out=out, origin=origin, preview_vae=preview, dry=dry_run
    )
    if dry_run:
        say(f"Would run {len(contenders)} searches on {len(texts)} prompts with {budget} each; nothing was run.")
        return
    if first and found is not None:
        _show(found, out, format)
        if any(row["failed"] for row in found):
            raise typer.Exit(EXIT_ITEMS)


def _reward(name: str, noise_aware: str) -> Reward:
    """The plain reward, with the judge of estimates beside it where there is one."""
    from diffkit.rewards import load_reward
    from diffkit.rewards.base import EstimateReward
    from ttsnap.evaluation.contenders import PairedReward
    from ttsnap.noise_aware.reward import NoiseAwareReward

    plain = load_reward(name)
    if noise_aware == "none":
        return plain
    aware: object = (
        NoiseAwareReward.from_pretrained(noise_aware) if Path(noise_aware).is_dir() else load_reward(noise_aware)
    )
    if not isinstance(aware, EstimateReward):
        raise InputError(f"The reward {noise_aware!r} does not know noise levels; give another, or none.")
    return PairedReward(plain, aware)


def _checksums(model: str, noise_aware: str, preview: str | None, index: Path | None) -> dict[str, str]:
    """Checksums of what lies in folders and files here."""
    from diffkit.loading import resolve_model
    from diffkit.runs import sha256_file, sha256_folder

    source = resolve_model(model)
    folders = {"model": source if isinstance(source, Path) else None, "noise_aware": Path(noise_aware)}
    if preview is not None:
        folders["preview_vae"] = Path(preview).expanduser()
    sums = {name: sha256_folder(folder) for name, folder in folders.items() if folder is not None and folder.is_dir()}
    return sums if index is None else {**sums, "index": sha256_file(index)}


def _show(rows: list[dict[str, Any]], out: Path, format: str) -> None:
    from ttsnap.evaluation.compare_report import table_rows

    if format == "json":
        write_json(rows)
        return
    headers, cells = table_rows(rows)
    write_table(headers, cells, title=f"{rows[0]['prompts']} prompts, in {out}; intervals are 95 %")
    say(f"The page is {out / 'report.html'}.")
