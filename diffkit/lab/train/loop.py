"""One resumable training loop for every model of the lab."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
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
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = _optimizer(parameters, learning_rate)
    pairs = [(average, models[key]) for key, average in (averaged or {}).items()]
    weight = torch.ones((), device=device)

    def update(step: int, inputs: Sequence[Tensor]) -> Tensor:
        loss = loss_at(step, *inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for average, model in pairs:
            _move_average(average, model, weight)
        return loss.detach()

    parts: dict[str, nn.Module | torch.optim.Optimizer] = {**models, "optimizer": optimizer}
    parts |= {f"averaged_{key}": model for key, model in (averaged or {}).items()}
    checkpoint = folder / f"{name}.ckpt"
    rates = [group["lr"] for group in optimizer.param_groups]
    start = _restore(checkpoint, parts)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # on its device
    if start:
        log.info("%s: going on from step %d of %d", name, start, steps)
    began, running = time.monotonic(), 0.0
    recorded: Update = update
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_stream(torch.cuda.Stream())  # a step cannot be recorded on the default stream
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        _set_rate(optimizer, learning_rate * cosine(step, steps))
        weight.fill_(1 - min(decay, (step + 1) / (step + 10)))
        if device.type == "cuda" and step == start + WARM_UP:
            recorded = _recorded(update, inputs_at(step))
        loss = recorded(step, inputs_at(step))
        done, saved = step + 1, (step + 1) % save_every == 0 or step + 1 == steps
        if device.type == "cuda" and not saved:
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
            _save(checkpoint, parts, done)


def _optimizer(parameters: list[nn.Parameter], rate: float) -> torch.optim.AdamW:
    """AdamW; on a CUDA device one whose step can be recorded, with its rate in a tensor."""
    recorded = parameters[0].is_cuda
    start = torch.tensor(rate, device=parameters[0].device) if recorded else rate
    return torch.optim.AdamW(parameters, lr=start, weight_decay=1e-3, betas=(0.9, 0.99), capturable=recorded)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a recorded step reads this very tensor
        else:
            group["lr"] = rate


Update = Callable[[int, Sequence[Tensor]], Tensor]


def _recorded(update: Update, inputs: Sequence[Tensor]) -> Update:
    """The same update as a CUDA graph: recorded once for inputs of these shapes, then launched whole."""
    held = [value.clone() for value in inputs]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        loss = update(0, held)

    def replay(step: int, inputs: Sequence[Tensor]) -> Tensor:
        for place, value in zip(held, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return loss

    return replay


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, weight: Tensor) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, weight)


def _save(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer], step: int) -> None:
    scratch = path.with_suffix(".part")
    torch.save({"step": step, **{key: part.state_dict() for key, part in parts.items()}}, scratch)
    os.replace(scratch, path)


def _restore(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for key, part in parts.items():
        part.load_state_dict(state[key])
    return int(state["step"])
