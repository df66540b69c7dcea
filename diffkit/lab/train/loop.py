"""One resumable training loop for every model of the lab."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.loading import cpu_has_bfloat16

log = logging.getLogger(__name__)


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
    loss_at: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    folder: Path,
    seed: int,
    averaged: Mapping[str, nn.Module] | None = None,
    decay: float = 0.995,
    save_every: int = 200,
) -> None:
    """Train ``models`` on ``loss_at(step)`` with AdamW; a checkpoint in ``folder`` lets a killed run go on.

    Every step seeds torch with a function of (seed, step), so a resumed run draws what an undisturbed one would.
    ``averaged`` holds the exponential moving averages that are kept beside the models of the same names.

    Raises:
        FloatingPointError: when the loss is not finite; the last checkpoint is kept.
    """
    parameters = [p for model in models.values() for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99))
    parts: dict[str, nn.Module | torch.optim.Optimizer] = {**models, "optimizer": optimizer}
    parts |= {f"averaged_{key}": model for key, model in (averaged or {}).items()}
    checkpoint = folder / f"{name}.ckpt"
    start = _restore(checkpoint, parts)
    if start:
        log.info("%s: going on from step %d of %d", name, start, steps)
    began, running = time.monotonic(), 0.0
    for step in range(start, steps):
        torch.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * cosine(step, steps)
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss is {loss.item()} at step {step}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        for key, average in (averaged or {}).items():
            _move_average(average, models[key], min(decay, (step + 1) / (step + 10)))
        running = loss.item() if step == start else 0.98 * running + 0.02 * loss.item()
        done = step + 1
        if done % save_every == 0 or done == steps:
            pace = (time.monotonic() - began) / (done - start)
            left = (steps - done) * pace / 60
            log.info(
                "%s: step %d of %d, loss %.4f, %.2f s a step, %.1f min left", name, done, steps, running, pace, left
            )
            _save(checkpoint, parts, done)


@torch.no_grad()
def _move_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


def _save(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer], step: int) -> None:
    scratch = path.with_suffix(".part")
    torch.save({"step": step, **{key: part.state_dict() for key, part in parts.items()}}, scratch)
    os.replace(scratch, path)


def _restore(path: Path, parts: Mapping[str, nn.Module | torch.optim.Optimizer]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    return int(state["step"])
