"""Curriculum self-distillation of a reward into a noise-aware one (TTSnap, arXiv 2511.22242).

The target of an estimate at any noise level is the frozen reward's own score of the finished image. Stages run from
clean to noisy and carry the weights over; each begins with a fresh AdamW whose learning rate falls in a straight line
to half. With the back-ends ``full`` and ``lora`` a stage is a level. The ``conditioned`` network opens several levels a
stage, and every batch is spread over all levels opened so far, so that the clean ones are not forgotten.

Where we differ from the authors' code: dropout is off; the preference loss runs, with the reward's spread within
prompts as its unit; held-out prompts are scored without padding or dropping; each stage's metrics and weights are
kept; a killed run goes on inside its stage as if undisturbed; clean levels at which the plain reward ranks held-out
prompts better are left to it; the number of processes does not change the batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save

from diffkit.console import format_table, progress
from diffkit.errors import InputError
from diffkit.rewards import load_reward
from diffkit.rewards.base import RewardLike, TrainableReward
from diffkit.rewards.identity import weights_digest
from diffkit.runs import Run
from diffkit.runs.files import dump_json, write_bytes_atomically
from ttsnap.noise_aware.checkpoint import Place
from ttsnap.noise_aware.curriculum import DistillSettings
from ttsnap.noise_aware.held_out import (
    LevelTau,
    Predict,
    compare_level,
    fit_calibration,
    predictions,
    recorded,
    tau_figure,
)
from ttsnap.noise_aware.reward import CLEAN_MARGIN, LinearCalibration, NoiseAwareReward
from ttsnap.noise_aware.trainer import Trainer
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["HEADERS", "DistillSettings", "Distilled", "distill"]

CALIBRATION_PROMPTS = 32
HEADERS = ("step", "log-SNR", "prompts", "tau before", "tau after", "gain")


class Distilled(NamedTuple):
    """A distilled reward as it was read back from disk, and its levels, from clean to noisy, on held-out prompts.

    Printed, it is a table of Kendall's tau to the final reward before and after, from noisy to clean.
    """

    reward: NoiseAwareReward
    levels: list[LevelTau]

    def table(self) -> list[list[object]]:
        """Rows under ``HEADERS``, one for each level, from noisy to clean."""

        def cell(mean: float | None, interval: tuple[float, float] | None) -> str | None:
            if mean is None:
                return None
            return f"{mean:.3f}" + ("" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})")

        return [
            [level.step, f"{level.log_snr:.2f}", level.prompts, cell(level.before, level.before_interval),
             cell(level.after, level.after_interval), cell(level.gain, level.gain_interval)]
            for level in sorted(self.levels, key=lambda level: level.log_snr)
        ]  # fmt: skip

    def __repr__(self) -> str:
        """The table."""
        return format_table(HEADERS, self.table(), title=repr(self.reward))


def distill(
    trajectories: Trajectories | str | Path,
    reward: RewardLike,
    settings: DistillSettings | None = None,
    *,
    out: str | Path,
    tracker: str | GeneralTracker | None = None,
) -> Distilled:
    """Distil a reward on collected trajectories into the folder ``out``; the same call resumes there.

    The folder is a run: ``model/`` (for :meth:`NoiseAwareReward.from_pretrained`), ``metrics.jsonl`` with one line a
    stage, ``tau.png``, ``summary.json``. Under ``accelerate launch`` all processes call it and share the disk.

    Args:
        trajectories: with previews and with this reward's scores, or the folder that ``collect`` wrote.
        reward: one that can be trained, or its registered name; its weights stay as they are.
        settings: how; the defaults of :class:`DistillSettings` without.
        tracker: logs the losses: the name of a tracker of accelerate (tensorboard, wandb, ...) or a tracker.

    Raises:
        InputError: the reward cannot be trained or is in half precision, the trajectories do not serve, or another run
            is in the folder.
        DiffkitError: training diverged.

    Example:
        >>> import tempfile
        >>> from diffkit import load_pipeline
        >>> from ttsnap import CollectSettings, DistillSettings, collect, distill
        >>> folder = tempfile.mkdtemp()
        >>> prompts = ["a red circle left of a blue square on gray", "a green triangle above a yellow circle on black"]
        >>> settings = CollectSettings(candidates=2, num_inference_steps=4, record=(1, 3))
        >>> trajectories = collect(load_pipeline("lab"), prompts, "lab", settings, out=f"{folder}/trajectories")
        >>> short = DistillSettings(stages=1, steps_per_stage=1, batch=2, held_out=0.5)
        >>> distilled = distill(trajectories, "lab", short, out=f"{folder}/distilled")
        >>> distilled.reward.name, [level.step for level in distilled.levels]
        ('lab-noise-aware', [1])
    """
    trajectories = trajectories if isinstance(trajectories, Trajectories) else Trajectories.open(trajectories)
    settings, base, folder = settings or DistillSettings(), load_reward(reward), Path(out)
    if not isinstance(base, TrainableReward):
        raise InputError(f"The reward {base.name!r} has no network to train; see diffkit.rewards.base.TrainableReward.")
    if any(value.dtype in (torch.float16, torch.bfloat16) for value in base.module.parameters()):
        raise InputError(f"The reward {base.name!r} is in half precision; load it without dtype= to train it.")
    trainer = Trainer(trajectories, base, settings, folder / "checkpoint.safetensors", tracker)
    config = {
        **asdict(settings),
        "reward": {"name": base.name, "sha256": weights_digest(base.module)},
        "trajectories": trajectories.record["config_hash"],
        "prompts": len(trajectories),
    }
    with _open(trainer, folder, config) as run:
        trainer.accelerator.wait_for_everyone()
        _train(trainer, folder, run)
        distilled = _assemble(trainer, folder)
        if run is not None:
            distilled.save_pretrained(folder / "model")
        trainer.accelerator.wait_for_everyone()
        distilled = NoiseAwareReward.from_pretrained(folder / "model", base)
        levels = _evaluate(trainer, distilled.score_estimates, range(len(trainer.levels)))
        if run is not None:
            limit = plain_limit(levels)
            distilled.plain_above = distilled.plain_above if limit is None else limit
            distilled.card = _card(trainer, levels, config)
            distilled.save_pretrained(folder / "model")
            tau_figure(levels, folder / "tau.png")
            run.write_text("metrics.jsonl", "".join(dump_json(item) + "\n" for item in run.done.values()))
            run.write_json("summary.json", distilled.card)
    return Distilled(distilled, levels)


def _open(trainer: Trainer, folder: Path, config: dict[str, Any]) -> AbstractContextManager[Run | None]:
    """The run, in the main process alone."""
    if not trainer.accelerator.is_main_process:
        return nullcontext()
    provenance = {"device": str(trainer.accelerator.device), "processes": trainer.accelerator.num_processes}
    return Run.open(folder, config=config, kind="distillation", provenance=provenance)


def _stage_file(folder: Path, stage: int) -> Path:
    return folder / "stages" / f"{stage:02d}.safetensors"


def _train(trainer: Trainer, folder: Path, run: Run | None) -> None:
    """All stages; at the end of each, its weights and then its metrics are written, before the next begins."""
    began = time.monotonic()

    def finished(stage: int, place: Place) -> None:
        nonlocal began
        levels = _evaluate(trainer, trainer.predict, trainer.stages[stage].fresh)
        if run is None:
            return
        write_bytes_atomically(_stage_file(folder, stage), save(trainer.state()))
        key = f"stage-{stage:02d}"
        if key not in run.done:
            run.write(key, _metrics(trainer, stage, place, levels, time.monotonic() - began))
        began = time.monotonic()

    total = trainer.steps_a_stage * len(trainer.stages)
    with progress("distilling", total=total) if run is not None else nullcontext() as bar:

        def tick(stage: int, steps: int) -> None:
            if bar is not None:
                bar.describe(f"distilling, stage {stage + 1} of {len(trainer.stages)}")
                bar.advance(steps)

        trainer.run(finished, tick)
    trainer.accelerator.wait_for_everyone()


def _metrics(trainer: Trainer, stage: int, place: Place, levels: list[LevelTau], seconds: float) -> dict[str, Any]:
    tenth = max(1, len(place.losses) // 10)
    opened = [trainer.steps[level] for level in trainer.stages[stage].opened]
    return {
        "stage": stage,
        "trained_steps": opened,
        "updates": place.step,
        "loss_first_tenth": float(np.mean(place.losses[:tenth])),
        "loss_last_tenth": float(np.mean(place.losses[-tenth:])),
        "seconds": round(seconds, 1),
        "held_out": [asdict(level) for level in levels],
    }


def _evaluate(trainer: Trainer, predict: Predict, levels: Sequence[int]) -> list[LevelTau]:
    """Tau before and after on the held-out prompts; nothing where none was held out."""
    if not trainer.held_out:
        return []
    final = trainer.final[trainer.held_out]
    rows = []
    for level in levels:
        log_snr = trainer.levels[level]
        before = recorded(trainer.estimates, trainer.base.name, trainer.held_out, level)
        after = predictions(trainer.estimates, predict, trainer.held_out, level, log_snr)
        rows.append(compare_level(step=trainer.steps[level], log_snr=log_snr, before=before, after=after, final=final))
    return rows


def _assemble(trainer: Trainer, folder: Path) -> NoiseAwareReward:
    """The reward from the stages' weights; in every process, since they share the disk."""
    stages = range(len(trainer.stages))
    kept = stages[-1:] if trainer.settings.backend == "conditioned" else stages
    states = [load_file(_stage_file(folder, stage)) for stage in kept]
    options: dict[str, Any] = {"backend": trainer.settings.backend, "levels": trainer.levels, "states": states,
                               "rank": trainer.settings.rank}  # fmt: skip
    reward = NoiseAwareReward(trainer.base, **options)
    if trainer.settings.loss == "mse" and not trainer.settings.standardise:
        return reward  # in the reward's own unit already
    return NoiseAwareReward(trainer.base, **options, calibrations=_calibrations(trainer, reward.score_estimates))


def plain_limit(levels: Sequence[LevelTau]) -> float | None:
    """The log-SNR above which the plain reward ranks better, between two levels; None when that is nowhere known.

    Args:
        levels: from clean to noisy, with their gains on held-out prompts.
    """
    gains = [level.gain is not None and level.gain > 0 for level in levels]
    if not levels or gains[0] or all(level.gain is None for level in levels):
        return None
    if not any(gains):
        return levels[-1].log_snr - CLEAN_MARGIN
    first = gains.index(True)
    return (levels[first - 1].log_snr + levels[first].log_snr) / 2


def _calibrations(trainer: Trainer, predict: Predict) -> list[LinearCalibration]:
    some = trainer.train[:CALIBRATION_PROMPTS]
    final = trainer.final[some]
    return [
        fit_calibration(predictions(trainer.estimates, predict, some, level, log_snr), final)
        for level, log_snr in enumerate(trainer.levels)
    ]


def _card(trainer: Trainer, levels: list[LevelTau], config: dict[str, Any]) -> dict[str, Any]:
    return {
        "base": config["reward"],
        "settings": asdict(trainer.settings),
        "prompts": {"trained": len(trainer.train), "held_out": len(trainer.held_out)},
        "candidates": trainer.trajectories.candidates,
        "images_without_a_final_score": int((~np.isfinite(trainer.final)).sum()),
        "updates_a_stage": trainer.steps_a_stage,
        "stages": [[trainer.steps[level] for level in stage.opened] for stage in trainer.stages],
        "plain_above": plain_limit(levels),
        "tau": [asdict(level) for level in levels],
    }
