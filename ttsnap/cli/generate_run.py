"""The searches of ``diffkit ttsnap generate`` in a run folder, by one process or by many.

While there are as many prompts left as processes, each process searches a prompt of its own. The candidates of the
prompts that are left over are dealt to all of them, anew after every cut. Neither changes who wins. Prompts that share
a budget are searched together, in the place of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from diffkit import parallel
from diffkit.console import is_quiet, say
from diffkit.copy_guard import is_guarded
from diffkit.errors import ScoringError
from diffkit.image_filters import FLAGGED
from diffkit.interruption import DenoisingInterrupted
from diffkit.named_pipeline import dtype_name
from diffkit.noted_options import options_of
from diffkit.option_values import read_names
from diffkit.rewards.base import Reward, describe
from diffkit.runs.shared import open_shared
from diffkit.truncation import say_truncated
from ttsnap.cli.named_search import search_of
from ttsnap.plots.search import contact_sheet, score_figure
from ttsnap.schedules.load import load_schedule
from ttsnap.search.config import SearchConfig
from ttsnap.search.held_out import load_held_out
from ttsnap.search.noise import Noise
from ttsnap.search.output import TTSnapPipelineOutput
from ttsnap.search.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffkit.runs import Run
    from ttsnap.pipeline import TTSnapPipeline
    from ttsnap.search.strategies.base import Strategy
    from ttsnap.search.trace import StageTrace

__all__ = ["generate"]


Unit = tuple[int, ...]  # consecutive prompts that are searched in one call


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
    added |= {f"sha256.{name}": value for name, value in (config["sha256"] or {}).items() if name == "held_out"}
    strategy = search_of(config)
    held_out = _prepare(pipe, prompts[0], config, strategy)
    truncated = say_truncated(pipe, {str(index + 1): prompt for index, prompt in enumerate(prompts)}, "prompts")
    with open_shared(out, config=config, kind="ttsnap", provenance=provenance, added=added) as run:
        if run is not None:
            run.retry([key for key, item in run.done.items() if item["error"] is not None], "prompts")
        done = parallel.broadcast(set() if run is None else set(run.done))
        left = [unit for unit in _units(len(prompts), config.get("group", 1)) if not done.issuperset(map(_key, unit))]
        for unit, searches in _searches(pipe, prompts, left, config, strategy, held_out):
            for key, searched in zip(map(_key, unit), searches, strict=True):
                if run is not None and key not in done:
                    _keep(run, key, searched)
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


def _units(prompts: int, size: int) -> list[Unit]:
    """The prompts in groups of ``size``; the last one may be smaller."""
    return [tuple(range(first, min(first + size, prompts))) for first in range(0, prompts, size)]


def _prepare(
    pipe: TTSnapPipeline, prompt: str, config: Mapping[str, Any], strategy: Strategy | None
) -> tuple[Reward, ...]:
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
        pipe.prepare(Request([prompt], pipe.reward, noise, search, config["negative"], strategy, held_out=held_out))
    return held_out


def _searches(
    pipe: TTSnapPipeline,
    prompts: Sequence[str],
    left: Sequence[Unit],
    config: Mapping[str, Any],
    strategy: Strategy | None,
    held_out: Sequence[Reward],
) -> Iterator[tuple[Unit, list[_Searched]]]:
    """A unit for each process while there are enough; the rest are searched by all together."""

    def search(unit: Unit, *, share: bool) -> list[_Searched]:
        for index in unit:
            say(f"{index + 1} of {len(prompts)}: {prompts[index]}")
        return _search(pipe, unit, prompts, config, strategy, held_out, share=share)

    size = parallel.processes()
    whole = len(left) - len(left) % size
    for first in range(0, whole, size):
        turn = left[first : first + size]
        mine = [search(unit, share=False) for unit in parallel.shard(turn)]
        yield from zip(turn, parallel.gather(mine), strict=True)
    for unit in left[whole:]:
        yield unit, search(unit, share=True)


def _search(
    pipe: TTSnapPipeline,
    unit: Unit,
    prompts: Sequence[str],
    config: Mapping[str, Any],
    strategy: Strategy | None,
    held_out: Sequence[Reward],
    *,
    share: bool,
) -> list[_Searched]:
    """Search the prompts of a unit; one that cannot be scored has its reason in its item, the others go on alone."""
    try:
        result = pipe(
            prompt=[prompts[index] for index in unit], num_inference_steps=config["steps"],
            guidance_scale=config["guidance"], negative_prompt=config["negative"], height=config.get("height"),
            width=config.get("width"), num_images_per_prompt=config["winners"], seed=config["seed"],
            first_prompt=unit[0], num_candidates=config["candidates"], budget=config["budget"],
            schedule=config["schedule"], search=strategy, micro_batch=config["micro_batch"], previews=True,
            share=share, held_out_rewards=held_out, diversity=config.get("diversity", 0.0), return_dict=True,
        )  # fmt: skip
    except ScoringError as error:
        if len(unit) > 1:
            alone = (_search(pipe, (index,), prompts, config, strategy, held_out, share=share) for index in unit)
            return [searched for parts in alone for searched in parts]
        return [_Searched({"prompt": prompts[unit[0]], "error": str(error), "winners": []}, [], {})]
    out = cast("TTSnapPipelineOutput", result)  # return_dict
    if out.interrupted:
        raise DenoisingInterrupted(pipe, "the run can be resumed by the same command")
    parts = [_part(out, place, config["winners"]) for place in range(len(unit))]
    searched = [_searched(prompts[index], part) for index, part in zip(unit, parts, strict=True)]
    if "group" in config:
        for each, part in zip(searched, parts, strict=True):
            each.item["group"], each.item["cost"] = list(unit), (part.spent or [])[0]._asdict()
    return searched


def _part(out: TTSnapPipelineOutput, place: int, winners: int) -> TTSnapPipelineOutput:
    """What a call has found for one of its prompts; the ledger is the call's."""
    mine, flags = slice(place * winners, (place + 1) * winners), out.nsfw_content_detected
    return TTSnapPipelineOutput(
        images=cast("list[Image]", out.images)[mine],
        seeds=out.seeds[mine],
        rewards=out.rewards[mine],
        trace=[replace(look, prompt=0) for look in out.trace if look.prompt == place],
        ledger=out.ledger,
        nsfw_content_detected=None if flags is None else flags[mine],
        similarities=None if out.similarities is None else out.similarities[mine],
        held_out=None if out.held_out is None else out.held_out[mine],
        spent=None if out.spent is None else [out.spent[place]],
    )


def _searched(prompt: str, out: TTSnapPipelineOutput) -> _Searched:
    """The item and the pictures of one prompt."""
    item: dict[str, Any] = {"prompt": prompt, "error": None, "winners": _winners(out)}
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


def _keep(run: Run, key: str, searched: _Searched) -> None:
    """Save the pictures, then the line that names them."""
    winners = [
        {"image": run.save_image(f"{key}-{rank}", image), **winner}
        for rank, (image, winner) in enumerate(zip(searched.winners, searched.item["winners"], strict=True))
    ]
    figures = {name: run.save_image(f"{key}-{name}", image) for name, image in searched.figures.items()}
    run.write(key, {**searched.item, "winners": winners, **figures})
