"""The training loop of distillation, by accelerate; it resumes inside a stage with the same result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from diffkit.errors import DiffkitError, InputError
from diffkit.loading import warn_of_slow_bfloat16
from diffkit.rewards.base import TrainableReward
from ttsnap.noise_aware.backends import build, trainable
from ttsnap.noise_aware.checkpoint import Place, load_checkpoint, save_checkpoint
from ttsnap.noise_aware.curriculum import DistillSettings, choose_steps, curriculum
from ttsnap.noise_aware.data import (
    Estimates,
    TrainingBatch,
    draw,
    finals,
    mse_loss,
    preference_loss,
    split_prompts,
    spread_within_prompts,
    standardised,
    usable,
)
from ttsnap.trajectories.dataset import Trajectories

__all__ = ["Trainer"]

BETAS, EPSILON, WEIGHT_DECAY, CLIP = (0.9, 0.999), 1e-8, 0.01, 5.0  # as published
LAST_RATE = 0.5  # of the learning rate, at a stage's end


class Trainer:
    """The training loop.

    Args:
        trajectories: collected trajectories with previews.
        base: the reward to distil, whose scores of the finished images were recorded.
        settings: how.
        checkpoint: file that a killed run goes on from.
        tracker: logs the losses: the name of a tracker of accelerate (tensorboard, wandb, ...), or a tracker.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        base: TrainableReward,
        settings: DistillSettings,
        checkpoint: Path,
        tracker: str | GeneralTracker | None = None,
    ) -> None:
        self.trajectories, self.base, self.settings, self.checkpoint = trajectories, base, settings, checkpoint
        self.steps = choose_steps(trajectories, settings.steps)
        log_snrs = dict(zip(trajectories.steps, trajectories.log_snrs, strict=True))
        self.levels = [log_snrs[step] for step in self.steps]
        self.stages = curriculum(settings.backend, len(self.steps), settings.stages)
        self.train, self.held_out = split_prompts(trajectories.prompts, settings.held_out, settings.seed)
        self.final = finals(trajectories, base.name)
        self.estimates = Estimates(trajectories, self.steps)
        self._units = self._make_units()
        self.spread = spread_within_prompts(self.final[self.train])
        if not self._units or not self.spread > 0:
            raise InputError(f"The finished images of {trajectories.folder} have no differing scores to learn from.")
        self._targets = self.final.copy()
        if settings.standardise:
            self._targets[self.train] = standardised(self.final[self.train])
        self._start_accelerator(tracker)

    def _start_accelerator(self, tracker: str | GeneralTracker | None) -> None:
        settings = self.settings
        AcceleratorState._reset_state()  # another run of this process may have had another precision
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            log_with=tracker,
            project_dir=self.checkpoint.parent,
        )
        warn_of_slow_bfloat16(settings.mixed_precision, self.accelerator.device)
        if tracker is not None:
            self.accelerator.init_trackers("distillation")
        parts = self.accelerator.num_processes * settings.accumulate
        if self.units_a_step % parts:
            raise InputError(
                f"A step's {self.units_a_step} units of the loss cannot be dealt to {parts} equal parts (processes "
                f"times accumulation); choose another batch."
            )
        self.base.module.to(self.accelerator.device)
        network = build(settings.backend, self.base, rank=settings.rank, seed=settings.seed)
        self.parameters = trainable(network)
        adam = torch.optim.AdamW(
            self.parameters.values(), settings.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY
        )
        self.network, self.optimizer = self.accelerator.prepare(network, adam)

    def _make_units(self) -> list[list[tuple[int, int]]]:
        """What a batch draws: single images, or for pairs all of a prompt's; those that can be trained on."""
        whole = usable(self.trajectories, self.final, self.steps)
        groups = [[(prompt, int(candidate)) for candidate in np.flatnonzero(whole[prompt])] for prompt in self.train]
        if self.settings.loss == "preference":
            return [group for group in groups if len(group) > 1]
        return [[image] for group in groups for image in group]

    @property
    def units_a_step(self) -> int:
        """Single images, or prompts for a loss on pairs."""
        if self.settings.loss == "mse":
            return self.settings.batch
        return max(1, self.settings.batch // self.trajectories.candidates)

    @property
    def steps_a_stage(self) -> int:
        """Updates of the weights in every stage."""
        if self.settings.steps_per_stage is not None:
            return self.settings.steps_per_stage
        return max(1, math.ceil(self.settings.epochs * len(self._units) / self.units_a_step))

    def run(self, finished: Callable[[int, Place], None], tick: Callable[[int, int], None]) -> None:
        """Train all stages, from the checkpoint if there is one.

        Args:
            finished: called with the stage and where it ended, before the checkpoint leaves the stage.
            tick: called with the stage and the number of steps newly done.

        Raises:
            DiffkitError: the loss or its gradient is not finite; the last checkpoint is kept.
        """
        inner = self.optimizer.optimizer
        place = load_checkpoint(self.checkpoint, self.parameters, inner) or Place()
        tick(place.stage, place.stage * self.steps_a_stage + place.step)
        while place.stage < len(self.stages):
            for step in range(place.step, self.steps_a_stage):
                loss = self._step(place.stage, step)
                place = Place(place.stage, step + 1, (*place.losses, loss))
                self.accelerator.log({"loss": loss, "stage": place.stage}, step=place.stage * self.steps_a_stage + step)
                tick(place.stage, 1)
                if place.step % self.settings.checkpoint_every == 0:
                    self._save(place)
            finished(place.stage, place)
            inner.state.clear()  # a fresh optimiser for the next stage
            place = Place(place.stage + 1)
            self._save(place)
        for tracker in self.accelerator.trackers:  # not end_training, which would part the processes
            tracker.finish()

    def _save(self, place: Place) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.checkpoint, self.parameters, self.optimizer.optimizer, place)

    def _step(self, stage: int, step: int) -> float:
        """One update; returns the mean loss over all processes."""
        settings, accelerator = self.settings, self.accelerator
        rate = settings.learning_rate * (1 - (1 - LAST_RATE) * step / self.steps_a_stage)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = self.units_a_step
        share = size // (accelerator.num_processes * settings.accumulate)
        total = 0.0
        for turn in range(settings.accumulate):
            first = (accelerator.process_index * settings.accumulate + turn) * share
            batch = draw(
                self._units,
                self.stages[stage].opened,
                size=size,
                seed=settings.seed,
                stage=stage,
                step=step,
                part=slice(first, first + share),
            )
            with accelerator.accumulate(self.network):
                loss = self._loss(batch)
                total += self._finite(accelerator.reduce(loss.detach(), "mean"), stage, step) / settings.accumulate
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.parameters.values(), CLIP)
                    if settings.mixed_precision != "fp16":  # whose scaler skips such steps itself
                        self._finite(norm, stage, step)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return total

    def _loss(self, batch: TrainingBatch) -> Tensor:
        levels = torch.tensor([self.levels[level] for _, _, level in batch.rows], device=self.accelerator.device)
        prompts = [self.trajectories.prompts[prompt] for prompt, _, _ in batch.rows]
        call = functools.partial(self.network, log_snr=levels)
        scores = self.base.differentiable(self.estimates.gather(batch.rows), prompts, module=call).float()
        rewards = [self._targets[prompt, candidate] for prompt, candidate, _ in batch.rows]
        targets = torch.tensor(rewards, dtype=torch.float32, device=scores.device)
        if self.settings.loss == "mse":
            return mse_loss(scores, targets)
        units = torch.tensor(batch.units, device=scores.device)
        temperature = self.settings.temperature * self.spread
        return preference_loss(scores, targets, units, temperature=temperature, soft=self.settings.soft)

    def _finite(self, value: Any, stage: int, step: int) -> float:
        number = float(value)
        if not math.isfinite(number):
            raise DiffkitError(
                f"The loss or its gradient is {number} in stage {stage}, step {step}: lower the learning rate. The "
                f"last checkpoint is kept in {self.checkpoint}."
            )
        return number

    def predict(self, images: Tensor, prompts: Sequence[str], log_snr: float) -> Tensor:
        """Scores (B,) of the network as it stands, in the precision it trains in."""
        rows = torch.full((len(images),), log_snr, device=self.accelerator.device)
        network = self.accelerator.unwrap_model(self.network)
        return self.base.differentiable(images, prompts, module=functools.partial(network, log_snr=rows))

    def state(self) -> dict[str, Tensor]:
        """A copy of the trained weights on the CPU."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}
