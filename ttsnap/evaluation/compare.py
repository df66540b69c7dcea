"""Search strategies side by side: each on every prompt, at equal counted cost, from the same seeds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit import parallel
from diffkit.console import format_table, progress, say
from diffkit.copy_guard import CopyGuardLike
from diffkit.errors import ScoringError
from diffkit.families import Autoencoder, Pipeline
from diffkit.image_filters import unfiltered
from diffkit.interruption import DenoisingInterrupted
from diffkit.lab import judge
from diffkit.named_pipeline import dtype_name, pipeline_identity
from diffkit.noted_options import options_of
from diffkit.rewards.base import EstimateReward, Reward, RewardLike
from diffkit.rewards.identity import reward_identity, weights_digest
from diffkit.runs import Run
from diffkit.runs.shared import open_shared
from diffkit.truncation import say_truncated
from ttsnap.evaluation.compare_report import summarise_searches, table_rows, write_page
from ttsnap.evaluation.contenders import Contender, paired_reward, read_contenders, shares_budget
from ttsnap.pipeline import TTSnapPipeline
from ttsnap.schedules.load import load_schedule
from ttsnap.schedules.pruning_schedule import PruningSchedule
from ttsnap.search.budget import priced
from ttsnap.search.config import SearchConfig
from ttsnap.search.held_out import load_held_out
from ttsnap.search.noise import Noise
from ttsnap.search.request import Request, SearchResult

__all__ = ["KIND", "CompareSettings", "Comparison", "compare"]

KIND = "ttsnap-compare"
JUDGED_SIZE = (3, 64, 64)
LATER = ("reward", "held_out")  # whose checksums version 0.1.0 did not record
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object without a text of its own


@dataclass(frozen=True)
class CompareSettings:
    """What is the same for all strategies.

    Attributes:
        budget: for each prompt, ``16x`` or in FLOP.
        group: prompts searched in one call; they share micro-batches, and in the search ``adaptive`` one total budget.

    Example:
        >>> CompareSettings(budget="4x", num_inference_steps=8).budget
        '4x'
    """

    budget: str = "16x"
    num_inference_steps: int = 20
    guidance_scale: float = 3.0
    negative: str | None = None
    seed: int = 0
    group: int = 4
    micro_batch: int | None = None


@dataclass(frozen=True)
class _Task:
    """One strategy on some consecutive prompts, which may share one budget: all are searched again or none."""

    contender: Contender
    first: int
    stop: int

    @property
    def keys(self) -> list[str]:
        return [f"{self.contender.label}/{index:06d}" for index in range(self.first, self.stop)]


@dataclass(frozen=True)
class _Bench:
    """A pipeline with everything that a task needs."""

    pipe: TTSnapPipeline
    prompts: Sequence[str]
    reward: Reward
    settings: CompareSettings
    held_out: Sequence[Reward] = ()

    def request(self, contender: Contender, first: int, stop: int) -> Request:
        settings = self.settings
        config = SearchConfig(
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            budget=settings.budget,
            eta=contender.eta,
            micro_batch=settings.micro_batch,
            preview_vae=self.pipe.preview_vae,
            copy_guard=self.pipe.copy_guard,
        )
        noise = Noise(seed=settings.seed, first_prompt=first)
        return Request(
            self.prompts[first:stop], self.reward, noise, config, settings.negative, contender.strategy, self.held_out
        )

    def run(self, task: _Task) -> list[tuple[dict[str, Any], Tensor | None]]:
        """Items and images of the task's prompts; a prompt that cannot be scored does not affect the others."""
        try:
            with unfiltered(self.pipe):  # a checker would choose among the images beside the strategies
                result = self.pipe.carry_out(self.request(task.contender, task.first, task.stop))
        except ScoringError as error:
            if task.stop - task.first == 1:
                base = {"search": task.contender.label, "index": task.first, "prompt": self.prompts[task.first]}
                return [({**base, "error": str(error)}, None)]
            return [self.run(_Task(task.contender, at, at + 1))[0] for at in range(task.first, task.stop)]
        if result.interrupted:
            raise DenoisingInterrupted(self.pipe, "the run can be resumed by the same command")
        return [self._item(result, task, place) for place in range(task.stop - task.first)]

    def _item(self, result: SearchResult, task: _Task, place: int) -> tuple[dict[str, Any], Tensor]:
        winner, ledger, share = result.winners[place][0], result.ledger, task.stop - task.first
        looks = [look for look in result.trace if look.prompt == place]
        prompt = self.prompts[task.first + place]
        spent, limit = result.spent[place], float((ledger.budget or {})["limit"]) / share
        return {
            "search": task.contender.label,
            "index": task.first + place,
            "prompt": prompt,
            "error": None,
            "seed": winner.candidate.seed,
            "recipe": None if winner.recipe is None else winner.recipe.to_dict(),
            "reward": winner.score,
            **({} if winner.held_out is None else {"held_out": _known(winner.held_out)}),
            **({} if winner.similarity is None else _known({"similarity": winner.similarity})),
            **_judged(winner.image, prompt),
            "candidates": len({index for look in looks for index in look.candidates}),
            "cost": spent._asdict(),
            "spent": priced(spent, ledger.flops),
            "limit": limit,
            "seconds": ledger.seconds["total"] / share,
            "looks": [[look.step, len(look.candidates)] for look in looks],
        }, winner.image


def _known(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Scores for JSON: None where there is none."""
    return {name: score if isfinite(score) else None for name, score in scores.items()}


def _judged(image: Tensor, prompt: str) -> dict[str, Any]:
    """The verdict of the lab's mechanical judge; None where the prompt is no scene of the lab."""
    unknown = {"judged": None, "judge_score": None}
    if tuple(image.shape) != JUDGED_SIZE:
        return unknown
    try:
        verdict = judge.check(image, prompt)
    except ValueError:
        return unknown
    return {"judged": verdict.correct, "judge_score": verdict.score}


@dataclass(frozen=True)
class Comparison:
    """What a comparison measured; printed, it is a table.

    Attributes:
        rows: one for each strategy; see :func:`ttsnap.evaluation.compare_report.summarise_searches`.
        folder: the run, with ``report.html``.
    """

    rows: list[dict[str, Any]]
    folder: Path

    def table(self) -> tuple[list[str], list[list[str | None]]]:
        """Headers and cells."""
        return table_rows(self.rows)

    def __repr__(self) -> str:
        """The table."""
        prompts = self.rows[0]["prompts"] if self.rows else 0
        return format_table(*self.table(), title=f"{prompts} prompts; intervals are 95 %")


def compare(
    pipe: Pipeline,
    prompts: Sequence[str],
    searches: str | Sequence[Contender] = "best-of-n,ttsp,ttsnap",
    settings: CompareSettings | None = None,
    *,
    reward: RewardLike,
    noise_aware: EstimateReward | str | Path | None = None,
    held_out_rewards: RewardLike | Sequence[RewardLike] | None = None,
    schedule: PruningSchedule | str | Path | None = None,
    out: str | Path,
    origin: Mapping[str, Any] | None = None,
    preview_vae: Autoencoder | str | Path | None = None,
    copy_guard: CopyGuardLike | None = None,
    dry: bool = False,
) -> Comparison:
    """Run every search on every prompt at equal counted cost, or resume the run in ``out``.

    Every process of a launch calls it alike.

    Args:
        pipe: a stock pipeline or a :class:`ttsnap.TTSnapPipeline`.
        prompts: what to show; a prompt's place in the list is part of its candidates' seeds.
        searches: names separated by commas, or what :func:`ttsnap.evaluation.contenders.read_contenders` gave.
        settings: budget and denoising; the defaults of :class:`CompareSettings` without.
        reward: of finished images, and of estimates where ``noise_aware`` is not given.
        noise_aware: reward of estimates; a folder that ``distill`` wrote, a registered name or a reward.
        held_out_rewards: one or several that score the winners and select nothing; each has its own columns.
        schedule: for the searches that prune by one; ``"2:0.4,6:0.4,11:0.5"`` by default.
        out: the run's folder.
        origin: for the record, what identifies model, rewards and searches; others are refused on resuming.
        preview_vae: decodes estimates instead of the pipeline's own; see
            :func:`ttsnap.search.preview_decoder.load_preview_vae`.
        copy_guard: pictures that no winner may copy, for every search; see :class:`ttsnap.TTSnapPipeline`.
        dry: only check that every search can work here; the result has no rows.

    Raises:
        InputError: a search cannot work here, bad input, or another run in the folder.

    Example:
        >>> import tempfile
        >>> from diffkit import load_pipeline
        >>> from ttsnap import CompareSettings, compare
        >>> settings = CompareSettings("2x", num_inference_steps=4)
        >>> comparison = compare(
        ...     load_pipeline("lab"), ["a red circle left of a blue square on gray"], "best-of-n,ttsnap", settings,
        ...     reward="lab-noise-aware", schedule="1:0.5", out=tempfile.mkdtemp(),
        ... )
        >>> [(row["search"], row["candidates"]) for row in comparison.rows]
        [('best-of-n', 2.0), ('ttsnap', 2.0)]
    """
    settings = settings or CompareSettings()
    scorer = paired_reward(reward, noise_aware)
    pruning = None if schedule is None else load_schedule(schedule)
    contenders = read_contenders(searches, schedules={"": pruning}) if isinstance(searches, str) else searches
    held_out = load_held_out(held_out_rewards, scorer)
    searcher = TTSnapPipeline.from_pipe(pipe, preview_vae=preview_vae, copy_guard=copy_guard)
    added: dict[str, Any] = {}
    if origin is None:
        origin = _origin(prompts, contenders, settings, scorer, pruning)
        origin |= {"held_out": [each.name for each in held_out]} if held_out else {}
        origin |= {} if searcher.copy_guard is None else {"copy_guard": dict(searcher.copy_guard.card())}
        added = {"objects": _objects(searcher, contenders, [scorer, *held_out])}
    searcher.set_progress_bar_config(disable=True)
    bench = _Bench(searcher, prompts, scorer, settings, held_out)
    for contender in contenders:
        searcher.prepare(bench.request(contender, 0, 1))
    say_truncated(pipe, {str(index + 1): prompt for index, prompt in enumerate(prompts)}, "prompts")
    if not dry:
        _run(bench, contenders, Path(out), origin, added)
        parallel.broadcast(None)  # wait until the first process has written
    rows = [] if dry else json.loads((Path(out) / "summary.json").read_bytes())
    return Comparison(rows, Path(out))


def _origin(
    prompts: Sequence[str],
    contenders: Sequence[Contender],
    settings: CompareSettings,
    reward: Reward,
    schedule: PruningSchedule | None,
) -> dict[str, Any]:
    """What changes results, as far as objects tell; the size of a group is added where prompts share a budget."""
    searches = ",".join(contender.label for contender in contenders)
    written = None if schedule is None else schedule.to_json()
    fixed = {name: value for name, value in asdict(settings).items() if name != "group"}
    return {**fixed, "prompts": list(prompts), "searches": searches, "reward": reward.name, "schedule": written}


def _objects(pipe: TTSnapPipeline, contenders: Sequence[Contender], rewards: Sequence[Reward]) -> dict[str, Any]:
    """What objects are beyond their names: version 0.1.0 did not record it."""
    preview = pipe.preview_vae
    return {
        "pipeline": pipeline_identity(pipe),
        "preview_vae": None if preview is None else weights_digest(preview),
        "rewards": [reward_identity(reward) for reward in rewards],
        "searches": [f"{each.label}: {ADDRESS.sub('', repr(each.strategy))}, eta {each.eta:g}" for each in contenders],
    }


def _run(
    bench: _Bench, contenders: Sequence[Contender], out: Path, origin: Mapping[str, Any], added: Mapping[str, Any]
) -> None:
    pipe, prompts, settings = bench.pipe, bench.prompts, bench.settings
    tasks = [
        _Task(contender, first, min(first + settings.group, len(prompts)))
        for first in range(0, len(prompts), settings.group)
        for contender in contenders
    ]
    provenance = {
        "device": str(pipe.device),
        "processes": parallel.processes(),
        "seeds": {"run": settings.seed},
        "group": settings.group,
    }
    sums = origin.get("sha256", {})
    added = {"dtype": dtype_name(pipe), **added, **{f"sha256.{name}": sums[name] for name in LATER if name in sums}}
    config = {**origin, **options_of(pipe), **{name: added[name] for name in added if "." not in name}}
    if any(map(shares_budget, contenders)):
        config["group"] = settings.group
    with open_shared(out, config=config, kind=KIND, provenance=provenance, added=added) as run:
        if run is not None:
            run.retry([key for key, item in run.done.items() if item["error"] is not None], "searches")
        done = parallel.broadcast(set() if run is None else set(run.done))
        left = [task for task in tasks if not done.issuperset(task.keys)]
        total = len(prompts) * len(contenders)
        if run is not None and done:
            say(f"{len(done)} of {total} searches are finished already; going on.")
        with progress("searching", total - len(done)) if run is not None else nullcontext() as bar:
            for task, results in _worked(bench, left):
                fresh = {key: result for key, result in zip(task.keys, results, strict=True) if key not in done}
                if run is not None:
                    _keep(run, fresh)
                if bar is not None:
                    bar.advance(len(fresh))
        if run is None:
            return
        items = [
            run.done[f"{contender.label}/{index:06d}"] for contender in contenders for index in range(len(prompts))
        ]
        directions = {reward.name: reward.higher_is_better for reward in bench.held_out}
        rows = summarise_searches(items, higher_is_better=bench.reward.higher_is_better, held_out=directions)
        run.write_json("summary.json", rows)
        write_page(run, rows, items)


def _keep(run: Run, fresh: Mapping[str, tuple[dict[str, Any], Tensor | None]]) -> None:
    for key, (item, image) in fresh.items():
        saved = {} if image is None else {"image": run.save_image(key.replace("/", "-"), image)}
        run.write(key, {**item, **saved})


def _worked(bench: _Bench, left: Sequence[_Task]) -> Iterator[tuple[_Task, list[tuple[dict[str, Any], Tensor | None]]]]:
    """Every process takes a task in turn; all get all results."""
    size = parallel.processes()
    for first in range(0, len(left), size):
        turn = left[first : first + size]
        yield from zip(turn, parallel.gather([bench.run(task) for task in parallel.shard(turn)]), strict=True)
