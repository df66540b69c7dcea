"""The searches of ``diffkit ttsnap generate`` in a run folder, by one process or by many.

While there are as many prompts left as processes, each process searches a prompt of its own. The candidates of the
prompts that are left over are dealt to all of them, anew after every cut. Neither changes who wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from diffkit import parallel
from diffkit.console import is_quiet, say
from diffkit.copy_guard import is_guarded
from diffkit.errors import ScoringError
from diffkit.image_filters import FLAGGED
from diffkit.named_pipeline import dtype_name
from diffkit.noted_options import options_of
from diffkit.option_values import read_names
from diffkit.rewards.base import Reward, describe
from diffkit.runs.shared import open_shared
from diffkit.truncation import say_truncated
from ttsnap.plots.search import contact_sheet, score_figure
from ttsnap.schedules.load import load_schedule
from ttsnap.search.config import SearchConfig
from ttsnap.search.held_out import load_held_out
from ttsnap.search.noise import Noise
from ttsnap.search.request import Request
from ttsnap.search.strategies.rounds import Rounds

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffkit.runs import Run
    from ttsnap.pipeline import TTSnapPipeline, TTSnapPipelineOutput
    from ttsnap.search.trace import StageTrace

__all__ = ["generate"]


class _Searched(NamedTuple):
    """One prompt: its item without the pictures' paths, and the pictures: winners by rank, scores, looks."""

    item: dict[str, Any]
    winners: list[Image]
    figures: dict[str, Image]


def generate(
    pipe: TTSnapPipeline, prompts: Sequence[str], config: Mapping[str, Any], out: str | Path
) -> list[dict[str, Any]] | None:
    """Search every prompt, or go on with the run in ``out``; every process of a launch calls it alike.

    Args:
        config: the arguments of the command that change results.

    Returns:
        The items of all prompts on the first process; None on the others.
    """
    pipe.set_progress_bar_config(disable=is_quiet(), leave=False)
    provenance = {
        "device": str(pipe.device),
        "processes": parallel.processes(),
        "seeds": {"run": config["seed"]},
    }
    config = {**config, "dtype": dtype_name(pipe), **options_of(pipe)}
    added = {"dtype": config["dtype"], "sha256": config["sha256"]}  # version 0.1.0 recorded no checksums
    held_out = _prepare(pipe, prompts[0], config)
    truncated = say_truncated(pipe, {str(index + 1): prompt for index, prompt in enumerate(prompts)}, "prompts")
    with open_shared(out, config=config, kind="ttsnap", provenance=provenance, added=added) as run:
        if run is not None:
            run.retry([key for key, item in run.done.items() if item["error"] is not None], "prompts")
        done = parallel.broadcast(set() if run is None else set(run.done))
        left = [index for index in range(len(prompts)) if _key(index) not in done]
        for index, searched in _searches(pipe, prompts, left, config, held_out):
            if run is not None:
                _keep(run, _key(index), searched)
        if run is None:
            return None
        items = [run.done[_key(index)] for index in range(len(prompts))]
        failed = sum(item["error"] is not None for item in items)
        summary: dict[str, Any] = {"prompts": len(items), "failed": failed, "items": items}
        if truncated:
            summary["truncated"] = truncated
        if pipe.reward is not None:
            summary["reward"] = describe(pipe.reward)
        if pipe.copy_guard is not None:
            summary["copy_guard"] = pipe.copy_guard.card()
        if held_out:
            summary["held_out"] = [describe(reward) for reward in held_out]
        run.write_json("summary.json", summary)
        return items


def _key(index: int) -> str:
    return f"{index:04d}"


def _prepare(pipe: TTSnapPipeline, prompt: str, config: Mapping[str, Any]) -> tuple[Reward, ...]:
    """The held-out rewards, after the search is checked before a folder is made, and the rewards are tried."""
    held_out: tuple[Reward, ...] = ()
    if pipe.reward is not None:
        held_out = load_held_out(read_names(config.get("held_out", "")), pipe.reward)
        search = SearchConfig(
            config["steps"],
            config["guidance"],
            load_schedule(config["schedule"]),
            config["candidates"],
            config["budget"],
            config["winners"],
            config.get("height"),
            config.get("width"),
            micro_batch=config["micro_batch"],
            preview_vae=pipe.preview_vae,
            copy_guard=pipe.copy_guard,
            diversity=config.get("diversity", 0.0),
        )
        noise = Noise(seed=config["seed"])
        pipe.prepare(
            Request([prompt], pipe.reward, noise, search, config["negative"], _rounds(config), held_out=held_out)
        )
    return held_out


def _searches(
    pipe: TTSnapPipeline,
    prompts: Sequence[str],
    left: Sequence[int],
    config: Mapping[str, Any],
    held_out: Sequence[Reward],
) -> Iterator[tuple[int, _Searched]]:
    """A prompt for each process while there are enough; the rest are searched by all together."""

    def search(index: int, *, share: bool) -> _Searched:
        say(f"{index + 1} of {len(prompts)}: {prompts[index]}")
        return _search(pipe, index, prompts[index], config, held_out, share=share)

    size = parallel.processes()
    whole = len(left) - len(left) % size
    for first in range(0, whole, size):
        turn = left[first : first + size]
        mine = [search(index, share=False) for index in parallel.shard(turn)]
        yield from zip(turn, parallel.gather(mine), strict=True)
    for index in left[whole:]:
        yield index, search(index, share=True)


def _search(
    pipe: TTSnapPipeline, index: int, prompt: str, config: Mapping[str, Any], held_out: Sequence[Reward], *, share: bool
) -> _Searched:
    """Search one prompt; one that cannot be scored has its reason in its item."""
    item: dict[str, Any] = {"prompt": prompt, "error": None, "winners": []}
    try:
        result = pipe(
            prompt, num_inference_steps=config["steps"], guidance_scale=config["guidance"],
            negative_prompt=config["negative"], height=config.get("height"), width=config.get("width"),
            num_images_per_prompt=config["winners"], seed=config["seed"],
            first_prompt=index, num_candidates=config["candidates"], budget=config["budget"],
            schedule=config["schedule"], search=_rounds(config), micro_batch=config["micro_batch"], previews=True,
            share=share, held_out_rewards=held_out, diversity=config.get("diversity", 0.0), return_dict=True,
        )  # fmt: skip
    except ScoringError as error:
        return _Searched({**item, "error": str(error)}, [], {})
    out = cast("TTSnapPipelineOutput", result)  # return_dict
    item["winners"] = _winners(out)
    if out.nsfw_content_detected is not None:
        item["flagged"] = len(_dropped(out.trace, "flagged"))
    if out.similarities is not None:
        item["copies"] = len(_dropped(out.trace, "copies"))
    for remark in _remarks(out):
        say(f"{prompt}: {remark}")
    item["candidates"] = len({index for look in out.trace for index in look.candidates})
    item["trace"] = [look.to_dict() for look in out.trace]
    item["ledger"] = out.ledger.to_dict()
    figures = {"scores": score_figure(out.trace, title=prompt, winners=out.seeds), "looks": contact_sheet(out.trace)}
    return _Searched(item, list(cast("list[Image]", out.images)), figures)


def _winners(out: TTSnapPipelineOutput) -> list[dict[str, Any]]:
    """Seed and reward of each winner; whether a safety checker flags it; how much it is like forbidden pictures."""
    winners: list[dict[str, Any]] = [
        {"seed": seed, "reward": score} for seed, score in zip(out.seeds, out.rewards, strict=True)
    ]
    for winner, flagged in zip(winners, out.nsfw_content_detected or (), strict=False):
        winner["flagged"] = flagged
    for winner, similarity in zip(winners, out.similarities or (), strict=False):
        winner["similarity"] = similarity if isfinite(similarity) else None
    for winner, scores in zip(winners, out.held_out or (), strict=False):
        winner["held_out"] = {name: score if isfinite(score) else None for name, score in scores.items()}
    return winners


def _dropped(trace: Sequence[StageTrace], by: Literal["flagged", "copies", "unscored"]) -> dict[int, str]:
    """Candidate -> reason, of those that the safety checker flags, the copy guard drops, or could not be scored."""
    reasons = {index: reason for look in trace for index, reason in look.reasons.items()}

    def kind(reason: str) -> str:
        return "flagged" if reason == FLAGGED else "copies" if is_guarded(reason) else "unscored"

    return {index: reason for index, reason in reasons.items() if kind(reason) == by}


def _remarks(out: TTSnapPipelineOutput) -> list[str]:
    """What happened to candidates apart from being pruned."""
    remarks, black = [], sum(out.nsfw_content_detected or ())
    if copies := _dropped(out.trace, "copies"):
        remarks.append(f"the copy guard drops {len(copies)} candidates; the best of the others were taken.")
    if unscored := _dropped(out.trace, "unscored"):
        remarks.append(f"{len(unscored)} candidates could not be scored: {next(iter(unscored.values()))}.")
    if black:
        remarks.append(
            f"{black} of {len(out.seeds)} images are black: the safety checker flags them, and too few others are "
            f"left; their rewards are those of the images under the black."
        )
    elif flagged := _dropped(out.trace, "flagged"):
        remarks.append(f"the safety checker flags {len(flagged)} candidates; the best of the others were taken.")
    return remarks


def _rounds(config: Mapping[str, Any]) -> Rounds | None:
    """The search of ``--enough``; None without it."""
    return Rounds(config["enough"], config["rounds"], config["schedule"]) if "enough" in config else None


def _keep(run: Run, key: str, searched: _Searched) -> None:
    """Save the pictures, then the line that names them."""
    winners = [
        {"image": run.save_image(f"{key}-{rank}", image), **winner}
        for rank, (image, winner) in enumerate(zip(searched.winners, searched.item["winners"], strict=True))
    ]
    figures = {name: run.save_image(f"{key}-{name}", image) for name, image in searched.figures.items()}
    run.write(key, {**searched.item, "winners": winners, **figures})
