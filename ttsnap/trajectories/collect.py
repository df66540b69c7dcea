"""Record denoisings: every candidate of every prompt once through the stock pipeline, x0 tapped on the way.

TTSnap's data generation keeps x0 of all steps of all images on the accelerator, draws seeds that nobody stores, and
keeps 8-bit pictures only. Here seeds follow from the run's seed, scores come from the float images, and nothing but one
micro-batch's estimates and the prompts in it are held at a time. Groups of prompts are cut from the whole list, never
from what is left, so a resumed run, or one on several processes, gives the same shards to the byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import sha256
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save
from torch.utils.flop_counter import FlopCounterMode

from diffkit import parallel
from diffkit.conditioning import encode_prompts, latent_shape
from diffkit.console import Bar, progress, say
from diffkit.errors import InputError
from diffkit.families import Autoencoder, Pipeline, refuse_pictures
from diffkit.flops import pipeline_flops
from diffkit.named_pipeline import dtype_name, pipeline_identity
from diffkit.noted_options import options_of
from diffkit.rewards import load_reward
from diffkit.rewards.base import Reward, RewardLike
from diffkit.rewards.identity import reward_identity, weights_digest
from diffkit.runs import Run
from diffkit.runs.files import write_bytes_atomically
from diffkit.runs.shared import open_shared
from diffkit.step_plan import plan
from diffkit.truncation import say_truncated
from ttsnap.search.preview_decoder import load_preview_vae
from ttsnap.search.prices import probe_reward
from ttsnap.trajectories.dataset import KIND, Trajectories, shard_name
from ttsnap.trajectories.recorder import CollectSettings, Recorded, Recorder, guided, image_size
from ttsnap.trajectories.summary import summarise_trajectories

__all__ = ["REWARDS_SHA256", "CollectSettings", "collect"]

REWARDS_SHA256 = "rewards_sha256"  # of rewards in folders, in ``origin``; version 0.1.0 had none


class _Shard(NamedTuple):
    """One prompt: its line in the journal and the content of its file."""

    item: dict[str, Any]
    data: bytes


class _Group(NamedTuple):
    """Prompts that fill whole micro-batches together: their numbers in the run."""

    first: int
    stop: int


def collect(
    pipe: Pipeline,
    prompts: Sequence[str],
    rewards: RewardLike | Sequence[RewardLike] | Mapping[str, RewardLike],
    settings: CollectSettings | None = None,
    *,
    out: str | Path,
    origin: Mapping[str, Any] | None = None,
    preview_vae: Autoencoder | str | Path | None = None,
) -> Trajectories:
    """Record every prompt, or go on with the recording in ``out``; every process of a launch calls it alike.

    Args:
        pipe: a pipeline whose denoising can be cut, on this process's device.
        prompts: what to show; a prompt's place in the list is part of its candidates' seeds.
        rewards: one or several: registered names, rewards, or callables ``(images, prompts) -> scores``; a mapping
            gives them the names of the record. A noise-aware one scores estimates with their noise level.
        settings: everything else that changes results; the defaults of :class:`CollectSettings` without.
        out: the run's folder.
        origin: what identifies the model and the preview decoder, for the record; others are refused on resuming.
        preview_vae: decodes estimates, as it will in a search; see
            :func:`ttsnap.search.preview_decoder.load_preview_vae`.

    Raises:
        InputError: bad input, a recording of something else in the folder, or a reward that does not work.

    Example:
        >>> import tempfile
        >>> from diffkit import load_pipeline
        >>> from ttsnap import CollectSettings, collect
        >>> folder = tempfile.mkdtemp()
        >>> pipe = load_pipeline("lab")
        >>> settings = CollectSettings(candidates=2, num_inference_steps=4)
        >>> trajectories = collect(pipe, ["a red circle left of a blue square on gray"], "lab", settings, out=folder)
        >>> trajectories
        Trajectories('...': 1 prompts, 2 candidates, 4 steps, rewards lab)
        >>> trajectories[0].previews.shape
        torch.Size([2, 4, 3, 64, 64])
    """
    rewards = _named(rewards)
    settings = settings or CollectSettings()
    _check(prompts, rewards)
    refuse_pictures(pipe)
    preview_vae = None if preview_vae is None else load_preview_vae(preview_vae, pipe)
    steps = plan(pipe, settings.num_inference_steps, image_size(pipe, settings))
    settings = settings.resolved(steps)
    added = {"dtype": dtype_name(pipe), **_later(pipe, rewards, preview_vae, origin)}
    config = {**_config(prompts, rewards, settings, origin or {}), **options_of(pipe), **added}
    recorder = Recorder(pipe, rewards, settings, steps, preview_vae)
    provenance = {**_provenance(recorder, prompts[0]), "processes": parallel.processes()}
    say_truncated(pipe, {str(index + 1): prompt for index, prompt in enumerate(prompts)}, "prompts")
    with open_shared(out, config=config, kind=KIND, provenance=provenance, added=added) as run:
        if run is not None:
            run.retry([key for key, item in run.done.items() if item["unscored"]], "prompts")
        done = parallel.broadcast(set() if run is None else set(run.done))
        left = [
            group
            for group in _groups(len(prompts), settings.candidates, recorder.batches.size)
            if not done.issuperset(_keys(group))
        ]
        if run is not None and done:
            say(f"{len(done)} of {len(prompts)} prompts are finished already; going on.")
        with progress("recording", len(prompts) - len(done)) if run is not None else nullcontext() as bar:
            for first in range(0, len(left), parallel.processes()):
                turn = left[first : first + parallel.processes()]
                recorded = [_record(recorder, prompts, group) for group in parallel.shard(turn)]
                for group, shards in zip(turn, parallel.gather(recorded), strict=True):
                    fresh = {key: shard for key, shard in zip(_keys(group), shards, strict=True) if key not in done}
                    if run is not None and bar is not None:
                        _keep(run, fresh, bar)
        if run is not None:
            run.write_json("summary.json", summarise_trajectories(Trajectories.open(out)))
    parallel.broadcast(None)  # wait until the first process has written
    return Trajectories.open(out)


def _keep(run: Run, shards: Mapping[str, _Shard], bar: Bar) -> None:
    for key, (item, data) in shards.items():
        write_bytes_atomically(run.path(item["shard"]), data)  # first: what the journal names is there
        run.write(key, item)
    bar.advance(len(shards))


def _check(prompts: Sequence[str], rewards: Mapping[str, Reward]) -> None:
    if isinstance(prompts, str) or not prompts or any(not isinstance(prompt, str) for prompt in prompts):
        raise InputError("Expected a non-empty list of prompts, each a string.")
    if not rewards:
        raise InputError("There is no reward to record; name at least one.")


def _named(rewards: RewardLike | Sequence[RewardLike] | Mapping[str, RewardLike]) -> dict[str, Reward]:
    """The rewards by the name that the record uses.

    Raises:
        InputError: two have the same name.
    """
    if isinstance(rewards, Mapping):
        return {name: load_reward(reward) for name, reward in rewards.items()}
    several = list(rewards) if isinstance(rewards, Sequence) and not isinstance(rewards, str) else [rewards]
    loaded = [(reward if isinstance(reward, str) else None, load_reward(reward)) for reward in several]
    named = {name or reward.name: reward for name, reward in loaded}
    if len(named) < len(several):
        raise InputError(f"Two rewards have one name; give a mapping with a name for each, got {', '.join(named)}.")
    return named


def _config(
    prompts: Sequence[str], rewards: Mapping[str, Reward], settings: CollectSettings, origin: Mapping[str, Any]
) -> dict[str, Any]:
    described = {name: {"higher_is_better": reward.higher_is_better} for name, reward in rewards.items()}
    chosen = {name: value for name, value in asdict(settings).items() if name != "lookahead" or value}
    return {**origin, **chosen, "rewards": described, "prompts": list(prompts)}


def _later(
    pipe: Pipeline, rewards: Mapping[str, Reward], preview_vae: Autoencoder | None, origin: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What version 0.1.0 did not record: checksums of rewards in folders; what objects are beyond their names."""
    if origin is not None:
        return {name: value for name, value in origin.items() if name == REWARDS_SHA256}
    return {
        "objects": {
            "pipeline": pipeline_identity(pipe),
            "preview_vae": None if preview_vae is None else weights_digest(preview_vae),
            "rewards": {name: reward_identity(reward) for name, reward in rewards.items()},
        }
    }


def _provenance(recorder: Recorder, prompt: str) -> dict[str, Any]:
    """Noise levels and counted prices; each reward is tried first, so that a wrong one is found at once."""
    pipe, settings = recorder.pipe, recorder.settings
    size = image_size(pipe, settings)
    verify = {name: probe_reward(reward, prompt, size).flop for name, reward in recorder.rewards.items()}
    with FlopCounterMode(display=False) as counter:
        text = encode_prompts(pipe, [prompt], guidance=False).positive
    flop = pipeline_flops(
        pipe,
        latent_shape(pipe, size),
        text,
        guidance=guided(pipe, settings),
        verify=None,
        preview=recorder.preview_vae,
        size=size,
        encode=float(counter.get_total_flops()),
        on_trial=lambda: None,
    )
    return {
        "device": str(pipe._execution_device),
        "dtype": str(pipe.dtype),
        "seeds": {"run": settings.seed},
        "rewards": {name: reward.name for name, reward in recorder.rewards.items()},
        "sigmas": list(recorder.plan.sigmas),
        "flop": {**asdict(flop), "verify": verify},
    }


def _groups(prompts: int, candidates: int, micro_batch: int) -> list[_Group]:
    """The fewest prompts whose candidates fill whole micro-batches; the last group may be smaller."""
    size = micro_batch // gcd(candidates, micro_batch)
    return [_Group(first, min(first + size, prompts)) for first in range(0, prompts, size)]


def _keys(group: _Group) -> list[str]:
    return [f"{index:06d}" for index in range(group.first, group.stop)]


def _record(recorder: Recorder, prompts: Sequence[str], group: _Group) -> list[_Shard]:
    """Record the group's prompts."""
    chosen = {index: prompts[index] for index in range(group.first, group.stop)}
    return [_shard(prompt_record) for prompt_record in recorder.run(chosen)]


def _shard(recorded: Recorded) -> _Shard:
    # One metadata key only: the format keeps no order of several, and the bytes must be the same again.
    about = json.dumps({"prompt": recorded.prompt, "index": recorded.number}, sort_keys=True)
    data = save({name: tensor.contiguous() for name, tensor in recorded.tensors.items()}, {"trajectory": about})
    item = {
        "prompt": recorded.prompt,
        "shard": shard_name(recorded.number),
        "sha256": sha256(data).hexdigest(),
        "bytes": len(data),
        "unscored": recorded.unscored,
        "seconds": recorded.seconds,
    }
    return _Shard(item, data)
