"""One resumable training loop for every model of the lab."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.loading import cpu_has_bfloat16

log = logging.getLogger(__name__)
WARM_UP = 10  # steps on a CUDA device before one is recorded


def cosine(step: int, steps: int, *, warmup: int = 100, floor: float = 0.02) -> float:
    """Learning-rate factor in (0, 1]: linear warm-up, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * along))


def bf16_where_fast() -> torch.autocast:
    """Mixed precision on processors with bfloat16 instructions."""
    return torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16())


def train(
    name: str,
    *,
    models: Mapping[str, nn.Module],
    loss_at: Callable[..., Tensor],
    steps: int,
    learning_rate: float,
    folder: Path,
    seed: int,
    inputs_at: Callable[[int], Sequence[Tensor]] = lambda step: (),
    averaged: Mapping[str, nn.Module] | None = None,
    decay: float = 0.995,
    save_every: int = 200,
) -> None:
    """Train ``models`` on a loss with AdamW; a checkpoint in ``folder`` lets a killed run go on.

    The loss of a step is ``loss_at(step, *inputs_at(step))``. Every step seeds torch with a function of (seed, step),
    so a resumed run draws what an undisturbed one would. On a CUDA device a step is recorded as a graph, which is
    launched whole: there the loss must follow from the inputs alone, all that is random or of the step among them.
    ``averaged`` holds the exponential moving averages that are kept beside the models of the same names.

    Raises:
        FloatingPointError: when the loss is not finite; the last checkpoint is kept.
    """
    trainer = _Trainer(models, averaged or {}, loss_at, learning_rate)
    checkpoint = folder / f"{name}.ckpt"
    start = trainer.restore(checkpoint)
    if start:
        log.info("%s: going on from step %d of %d", name, start, steps)
    began, running = time.monotonic(), 0.0
    with trainer.stream():
        for step in range(start, steps):
            torch.manual_seed(seed * 1_000_003 + step)
            trainer.set(rate=learning_rate * cosine(step, steps), weight=1 - min(decay, (step + 1) / (step + 10)))
            loss = trainer.update(step, inputs_at(step))
            done, saved = step + 1, (step + 1) % save_every == 0 or step + 1 == steps
            if loss.is_cuda and not saved:
                continue  # reading the loss would wait for the device
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower the learning rate")
            running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
            if saved:
                pace = (time.monotonic() - began) / (done - start)
                left = (steps - done) * pace / 60
                log.info(
                    "%s: step %d of %d, loss %.4f, %.3f s a step, %.1f min left", name, done, steps, running, pace, left
                )
                trainer.save(checkpoint, done)


class _Trainer:
    """Models, their moving averages and the optimizer; on a CUDA device a step becomes a graph after some warm-up."""

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        averaged: Mapping[str, nn.Module],
        loss_at: Callable[..., Tensor],
        rate: float,
    ) -> None:
        self.parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
        self.loss_at = loss_at
        self.pairs = [(average, models[key]) for key, average in averaged.items()]
        device = self.parameters[0].device
        self.on_cuda, self.weight = device.type == "cuda", torch.ones((), device=device)
        self.rate = torch.tensor(rate, device=device) if self.on_cuda else rate
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=1e-3, betas=(0.9, 0.99), capturable=self.on_cuda, fused=True
        )
        self.parts: dict[str, nn.Module | torch.optim.Optimizer] = {**models, "optimizer": self.optimizer}
        self.parts |= {f"averaged_{key}": model for key, model in averaged.items()}
        self.made = 0
        self.replay: Callable[[Sequence[Tensor]], Tensor] | None = None

    def stream(self) -> AbstractContextManager[object]:
        """A stream on which a step can be recorded; the default one of a CUDA device is not."""
        if not self.on_cuda:
            return nullcontext()
        torch.cuda.synchronize()
        return torch.cuda.stream(torch.cuda.Stream())

    def set(self, *, rate: float, weight: float) -> None:
        """Learning rate, and how far the averages move, for the next step; a recorded step reads these tensors."""
        self.weight.fill_(weight)
        for group in self.optimizer.param_groups:
            if isinstance(self.rate, Tensor):
                self.rate.fill_(rate)
            else:
                group["lr"] = rate

    def update(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        """One step; returns its loss."""
        self.made += 1
        if not self.on_cuda or self.made <= WARM_UP:
            return self._update(step, inputs)
        if self.replay is None:
            self.replay = self._recorded(inputs)
        return self.replay(inputs)

    def _update(self, step: int, inputs: Sequence[Tensor]) -> Tensor:
        loss = self.loss_at(step, *inputs)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        for average, model in self.pairs:
            _move_average(average, model, self.weight)
        return loss.detach()

    def _recorded(self, inputs: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
        """A step as a graph, recorded once for inputs of these shapes. What is random must come in with the inputs."""
        held = [value.clone() for value in inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            loss = self._update(0, held)

        def replay(inputs: Sequence[Tensor]) -> Tensor:
            for place, value in zip(held, inputs, strict=True):
                place.copy_(value)
            graph.replay()
            return loss

        return replay

    def save(self, path: Path, step: int) -> None:
        """Write everything that a later run needs, at once or not at all."""
        scratch = path.with_suffix(".part")
        torch.save({"step": step, **{key: part.state_dict() for key, part in self.parts.items()}}, scratch)
        os.replace(scratch, path)

    def restore(self, path: Path) -> int:
        """The step that a saved run has reached; 0 where there is none."""
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True, map_location="cpu")
        for key, part in self.parts.items():
            part.load_state_dict(state[key])
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate  # on its device
        return int(state["step"])


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)
