"""The training loop of adversarial fine-tuning, by accelerate: searches, updates, checkpoints, quality budget.

All randomness of an update comes from a generator of (seed, process, update), so that a checkpoint needs only weights,
Adam's moments and the pool, and a resumed run draws the same noise as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffkit.conditioning import denoiser_call
from diffkit.console import progress, say
from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.gradient_checkpointing import gradient_checkpointing
from diffkit.loading import warn_of_slow_bfloat16
from diffkit.mitigation import Mitigation
from diffkit.parallel import broadcast
from diffkit.parameterization import noise_variance, signal_over_noise
from diffkit.prompt_embeds import Embeds
from diffkit.seeds import item_seed
from diffkit.training_objective import all_timesteps, draw_timesteps, noised
from memorization.mitigation.adversarial.checkpoint import Checkpoint, restore, save
from memorization.mitigation.adversarial.data import TrainingData, prepare
from memorization.mitigation.adversarial.objective import rate_factor, redirected
from memorization.mitigation.adversarial.settings import AdversarialSettings
from memorization.mitigation.adversarial.trainable_weights import trainable
from memorization.mitigation.adversarial.trigger_pool import ANYTHING, TRIGGERS, Starts, TriggerPool
from memorization.quality.losses import validation_losses

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["Trainer", "train"]

EMPTY_SHARE = 0.1  # of the retention captions are empty, to keep the unconditional branch
BETWEEN = 0.3  # share of the redirected samples that begin between surrogate and memorized image


class Losses(NamedTuple):
    """Means of one update; NaN where it had no such sample."""

    search: float
    surrogate: float
    redirected: float
    retention: float


def train(pipe: Pipeline, suspects: Sequence[Suspect], run: Run | None, settings: AdversarialSettings) -> Mitigation:
    """See :func:`memorization.mitigation.adversarial.method.mitigate`; ``run`` is None on all but the first process."""
    from memorization.generation import image_size

    data = prepare(pipe, suspects, run, settings, image_size(pipe))
    folder, config = broadcast((run.folder, run.record["config"]) if run is not None else (Path(), {}))
    with trainable(pipe, settings) as (weights, change):
        trainer = Trainer(pipe, weights, data, settings)
        state = trainer.fit(folder)
        tensors = change()
    figures: dict[str, object] = {"surrogates": data.figures, "retention": len(data.retention.latents)}
    return Mitigation(
        method="adversarial",
        kind="lora" if settings.lora_rank else "delta",
        model=config["model"],
        model_sha256=config["model_sha256"],
        settings=config["settings"],
        suspects=tuple(suspect.id for suspect in suspects),
        figures=figures | state,
        tensors=tensors,
    )


class Trainer:
    """Alternate steps of the searches and updates of the weights.

    Args:
        pipe: in float32.
        weights: the trained parameters of the denoiser, by name.
        data: the training data.
        settings: see :class:`AdversarialSettings`.
    """

    def __init__(
        self, pipe: Pipeline, weights: dict[str, nn.Parameter], data: TrainingData, settings: AdversarialSettings
    ) -> None:
        self.pipe, self.weights, self.data, self.settings = pipe, weights, data, settings
        mixed = None if settings.precision == "no" else settings.precision
        self.accelerator = Accelerator(cpu=pipe.device.type == "cpu", mixed_precision=mixed)
        warn_of_slow_bfloat16(settings.precision, self.accelerator.device)
        self.rank = self.accelerator.process_index
        self.optimizer = torch.optim.AdamW(
            list(weights.values()), settings.learning_rate, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        for weight in weights.values():
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[weight] = {"step": torch.tensor(0.0), **zeros}
        self.family = family_of(pipe)
        self.denoiser = getattr(pipe, self.family.denoiser)
        self.wrapped = self.accelerator.prepare_model(self.denoiser)
        steps = all_timesteps(pipe.scheduler)
        snr = signal_over_noise(pipe.scheduler, steps).square()
        within = (snr >= settings.redirect_low) & (snr <= settings.redirect_high)
        self.medium = steps[within].to(pipe.device)  # timesteps of redirected samples
        if not len(self.medium):
            raise InputError("No timestep has a signal-to-noise ratio between redirect_low and redirect_high.")
        own = slice(self.rank, None, self.accelerator.num_processes)
        self.memorized = data.memorized[own].to(pipe.device)
        self.surrogates = [part.to(pipe.device) for part in data.surrogates[own]]
        self.centres = torch.stack([part.mean(0) for part in self.surrogates])
        if self.family.no_gradient is not None:
            raise InputError(f"{self.family.name} cannot be fine-tuned here: {self.family.no_gradient}.")
        if data.captions.varies:
            raise InputError(
                f"Prompts of {self.family.name} differ in length; adversarial fine-tuning needs equal lengths."
            )
        self.pool = TriggerPool(
            Starts(self._own_rows(data.captions), data.retention.embeds.to(pipe.device), settings.starts),
            searches=settings.searches,
            length=settings.search_length,
            learning_rate=settings.search_rate,
            generator=self._generator("pool", 0),
        )

    def fit(self, folder: Path) -> dict[str, object]:
        """Train to the end, from the checkpoint in the run's folder where there is one; returns figures."""
        began = time.monotonic()
        parts = (self.weights, self.optimizer, self.pool)
        state = restore(folder, self.accelerator, *parts)
        if state is None:
            state = Checkpoint(0, [{"update": 0, **self._validation()}], 0.0, None)
            save(folder, self.accelerator, *parts, state)
        seconds = state.seconds
        left = self.settings.updates - state.update
        with progress("fine-tuning", total=left) as bar, gradient_checkpointing(self.denoiser):
            while state.update < self.settings.updates and state.stopped is None:
                upto = min(state.update + self.settings.checkpoint_every, self.settings.updates)
                for number in range(state.update, upto):
                    losses = self.update(number)
                    bar.advance()
                entry: dict[str, Any] = {"update": upto, **_rounded(losses), **self._validation()}
                reason = self._over_budget(state.history[0], entry)
                if reason is not None:  # the result is the last state within the budget
                    restore(folder, self.accelerator, *parts)
                    say(f"Stopped: {reason}.")
                    state = state._replace(history=[*state.history, entry], stopped=reason)
                else:
                    state = Checkpoint(upto, [*state.history, entry], seconds + time.monotonic() - began, None)
                save(folder, self.accelerator, *parts, state)
        self.accelerator.free_memory()
        return {"updates": state.update, "stopped": state.stopped, "history": state.history, "seconds": state.seconds}

    def update(self, number: int) -> Losses:
        """One step of some searches, then one update of the weights."""
        generator = self._generator("update", number)
        self.denoiser.eval()
        search = math.nan
        if self.settings.search_batch:
            rows = self.pool.choose(self.settings.search_batch, generator)
            search = self.pool.advance(rows, lambda i, e: self._memorized_loss(i, e, generator), generator)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate_factor(number, self.settings.updates)
        latents, noise, timesteps, embeds, begins = self._batch(generator)
        noisy, target = noised(self.pipe.scheduler, latents, noise, timesteps)
        n = self.settings.adversarial_batch
        x0_weight = noise_variance(self.pipe.scheduler, timesteps[:n])
        weights = torch.where(begins.to(noise.device), x0_weight, 1.0)
        with torch.enable_grad(), self.accelerator.autocast():
            predicted = self._predict(self.wrapped, noisy, timesteps, embeds)
            each = (predicted.float() - target).square().flatten(1).mean(1)
            loss = self.settings.adversarial_weight * (weights * each[:n]).mean() + each[n:].mean()
        if not torch.isfinite(loss):
            raise InputError(f"The loss is {float(loss)} at update {number}; give a lower learning_rate.")
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(list(self.weights.values()), 1.0)
        self.optimizer.step()
        adversarial = each[:n].detach()
        return Losses(
            search,
            float(adversarial[~begins].mean()),
            float(adversarial[begins].mean()),
            float(each[n:].detach().mean()),
        )

    def _predict(self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, embeds: Embeds) -> Tensor:
        """The denoiser's output, as the pipeline itself calls it, through a wrapper of it where there is one."""
        call = denoiser_call(self.pipe, noisy, timesteps, embeds)
        positional, named = self.family.inputs(self.pipe, call)
        return self.family.output(denoiser(*positional, **named, return_dict=False), call)

    def _memorized_loss(self, images: Tensor, embeddings: Embeds, generator: torch.Generator) -> Tensor:
        """(R,) diffusion losses of memorized images under their triggers, over some draws of noise."""
        draws = self.settings.search_draws
        clean = self.memorized[images].repeat_interleave(draws, 0)
        noise, timesteps = self._noise(clean.shape, generator), self._timesteps(len(clean), generator)
        noisy, target = noised(self.pipe.scheduler, clean, noise, timesteps)
        with self.accelerator.autocast():
            predicted = self._predict(self.denoiser, noisy, timesteps, embeddings.repeat(draws))
        losses: Tensor = (predicted.float() - target).square().flatten(1).mean(1).view(-1, draws).mean(1)
        return losses

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Embeds, Tensor]:
        """Latents, noise, timesteps and embeddings, adversarial rows first; which of those are redirected."""
        n, m = self.settings.adversarial_batch, len(self.memorized)
        images = torch.cat([torch.randperm(m, generator=generator) for _ in range(-(-n // m))])[:n]
        begins = torch.rand(n, generator=generator) < self.settings.redirect
        triggers, anything = (self.pool.embeddings(images, shares, generator) for shares in (TRIGGERS, ANYTHING))
        both = Embeds.cat([triggers, anything])
        embeds = both.rows([i + n * int(begin) for i, begin in enumerate(begins.tolist())])
        picks = [int(torch.randint(len(self.surrogates[i]), (), generator=generator)) for i in images.tolist()]
        ends = torch.stack([self.surrogates[i][pick] for i, pick in zip(images.tolist(), picks, strict=True)])
        column = (-1, *[1] * (ends.ndim - 1))
        ends = torch.where(begins.view(column).to(ends.device), self.centres[images], ends)
        noise = self._noise(ends.shape, generator)
        medium = self.medium[torch.randint(len(self.medium), (n,), generator=generator).to(noise.device)]
        timesteps = torch.where(begins.to(noise.device), medium, self._timesteps(n, generator))
        along = (torch.rand(n, generator=generator) / BETWEEN).clamp(max=1)
        share = torch.where(begins, along, 0.0).view(column).to(ends)
        shift = signal_over_noise(self.pipe.scheduler, timesteps)
        noise = redirected(ends.lerp(self.memorized[images], share), ends, noise, shift)
        keep, keep_embeds = self._retained(generator)
        return (
            torch.cat([ends, keep]),
            torch.cat([noise, self._noise(keep.shape, generator)]),
            torch.cat([timesteps, self._timesteps(len(keep), generator)]),
            Embeds.cat([embeds, keep_embeds]),
            begins,
        )

    def _retained(self, generator: torch.Generator) -> tuple[Tensor, Embeds]:
        """Latents and embeddings of retention samples; some of the captions empty."""
        kept = self.data.retention
        chosen = torch.randint(len(kept.latents), (self.settings.retention_batch,), generator=generator)
        empty = torch.rand(len(chosen), generator=generator) < EMPTY_SHARE
        every = Embeds.cat([kept.embeds, self.data.empty])  # the empty caption is the last row
        embeds = every.rows(torch.where(empty, len(kept.embeds), chosen).tolist())
        return kept.latents[chosen].to(self.pipe.device), embeds.to(self.pipe.device)

    def _timesteps(self, n: int, generator: torch.Generator) -> Tensor:
        return draw_timesteps(self.pipe.scheduler, n, generator).to(self.pipe.device)

    def _own_rows(self, rows: Embeds) -> Embeds:
        """This process's part of some rows."""
        return rows.rows(range(self.rank, len(rows), self.accelerator.num_processes)).to(self.pipe.device)

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(tuple(shape), generator=generator).to(self.pipe.device)

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        seed = item_seed(self.settings.seed, f"process:{self.rank}", purpose, number)
        return torch.Generator().manual_seed(seed)

    def _validation(self) -> dict[str, float]:
        """Loss on the validation pairs, with the same noise every time."""
        kept = self.data.retention
        self.denoiser.eval()
        losses = validation_losses(self.pipe, kept.validation, kept.captions, draws=1, seed=self.settings.seed)
        return {"validation": round(float(losses.loss.mean()), 6)}

    def _over_budget(self, first: dict[str, Any], now: dict[str, Any]) -> str | None:
        budget = self.settings.loss_budget
        if budget is None or now["validation"] <= (1 + budget) * first["validation"]:
            return None
        return f"the validation loss rose from {first['validation']:.4f} to {now['validation']:.4f} at {now['update']}"


def _rounded(losses: Losses) -> dict[str, float | None]:
    """For the record: five decimals, None where there was no such sample."""
    return {name: None if math.isnan(value) else round(value, 5) for name, value in losses._asdict().items()}
