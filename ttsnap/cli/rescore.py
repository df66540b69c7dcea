"""``diffkit ttsnap rescore``: what another reward says of estimates that were recorded already."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from diffkit.console import progress, say, write_json, write_table
from diffkit.errors import InputError
from diffkit.options import Debug, DryRun, Format
from ttsnap.cli.options import TrajectoriesFolder


def rescore(
    trajectories: TrajectoriesFolder,
    reward: Annotated[
        str, typer.Option(help="A registered reward, or the folder model/ of `diffkit ttsnap distill`.")
    ] = "lab-noise-aware",
    base: Annotated[str | None, typer.Option(help="The recorded reward whose finals count.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", dir_okay=False, help="The rewards' file, .npz.")] = None,
    format: Format = "table",
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Write the rewards of both to one .npz for fit and simulate, and print how well each look ranks the finals.

    Nothing is denoised again: the recorded previews are scored at their noise levels.
    Exit codes: 0 done; 2 wrong input.
    """
    from diffkit.rewards import load_reward
    from ttsnap.noise_aware.reward import NoiseAwareReward
    from ttsnap.reward_tensor import save_npz
    from ttsnap.trajectories.dataset import Trajectories
    from ttsnap.trajectories.rescore import rescore as score_anew

    if out is None or out.suffix != ".npz":
        raise InputError("There is no file for the rewards; give one that ends in .npz with --out.")
    recorded = Trajectories.open(trajectories)
    scorer = NoiseAwareReward.from_pretrained(reward) if Path(reward).is_dir() else load_reward(reward)
    name = base or (recorded.names[0] if len(recorded.names) == 1 else None)
    if name is None:
        raise InputError(f"{trajectories} holds {', '.join(recorded.names)}; say which finals count with --base.")
    if scorer.name == name:
        raise InputError(f"The reward {name!r} is the recorded one, so its scores are there; give another --reward.")
    if dry_run:
        say(f"Would score {len(recorded)} prompts of {recorded.candidates} candidates at {len(recorded.steps)} steps.")
        return
    with progress("scoring", total=len(recorded)) as bar:
        anew = score_anew(recorded, name, scorer, advance=bar.advance)
    plain = recorded.reward_tensor(name)
    save_npz(out, plain, anew)
    rows = [
        {"step": step, "log_snr": level, **{f"tau of {each.name}": _tau(each.looks[:, :, step], each.final)
                                            for each in (plain, anew)}}
        for step, level in zip(recorded.steps, recorded.log_snrs, strict=True)
    ]  # fmt: skip
    if format == "json":
        write_json([{key: value if value is None or isfinite(value) else None for key, value in row.items()}
                    for row in rows])  # fmt: skip
        return
    write_table(list(rows[0]), [[f"{value:.3f}" if isinstance(value, float) else value for value in row.values()]
                                for row in rows])  # fmt: skip
    say(f"The rewards are in {out}.")


def _tau(looks: object, final: object) -> float | None:
    """The mean over the prompts that have a tau; None where no prompt has one, as with one candidate each."""
    import numpy as np

    from ttsnap.alignment import kendall

    taus = kendall(np.asarray(looks), np.asarray(final))
    return float(np.nanmean(taus)) if np.isfinite(taus).any() else None
