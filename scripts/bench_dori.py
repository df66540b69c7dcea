"""How fast is the trigger search: 24 images in one batch against one after the other, and where the time goes.

    python scripts/bench_dori.py [--images 24] [--steps 50] [--processes 2] [--json docs/figures/bench_dori.json]

"One after the other" is counted twice: as a loop in this process, and as one process for each image, which starts
Python, loads the model and searches, as a script for one image does (a few are run, their mean is given). Wall clock
and processor time are both given: on a busy machine only the second means something.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffkit.flops import count_flops
from diffkit.images import load_image
from diffkit.latents import encode_images
from diffkit.loading import load_pipeline
from diffkit.suspects import read_suspects
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.attack.objective import frozen, objective

DRAWS, SEED = 8, 0
BLOCKS = (8, 16, 32, 64, 192)


class Took(NamedTuple):
    """Seconds on the wall and of processors, user and system together."""

    wall: float
    cpu: float


def took(call: Callable[[], object], repeats: int = 1) -> Took:
    """What a call took, on average."""
    before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(repeats):
        call()
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Took((time.perf_counter() - wall) / repeats, cpu / repeats)


def targets(n: int, pipe: Any) -> list[Target]:
    """Planted images, from the first again where more are asked for; Gaussian starts."""
    suspects, _ = read_suspects("lab:planted")
    length, width = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    targets = []
    for i in range(n):
        start = torch.randn(length, width, generator=torch.Generator().manual_seed(i))
        targets.append(Target(load_image(suspects[i % len(suspects)].images[0]), start, SEED + i))
    return targets


def search(pipe: Any, given: list[Target], steps: int, rows: int, micro_batch: int) -> None:
    """One DoRI search of all targets."""
    Dori(budgets=(0, steps), micro_batch=micro_batch, rows=rows, draws=DRAWS)(pipe, given)


def separately(images: int, steps: int, processes: int) -> dict[str, Any] | None:
    """The mean of some single searches in processes of their own, times the number of images."""
    if not processes:
        return None
    line = [sys.executable, __file__, "--one", "--steps", str(steps)]
    seconds = [took(lambda: subprocess.run(line, check=True)).wall for _ in range(processes)]
    return {"run": processes, "seconds each": seconds, "seconds for all": sum(seconds) / processes * images}


def where(pipe: Any, given: list[Target], steps: int = 5) -> dict[str, Any]:
    """Processor milliseconds per step of a single search, by part."""
    images = given[0].image[None]
    loss, source = objective(pipe, images, rows=DRAWS), torch.Generator().manual_seed(0)
    embeddings = given[0].start[None]
    drawn = loss.draw([source], DRAWS)
    loss.gradient(embeddings, drawn)
    parameter = embeddings.clone().requires_grad_(True)
    adam = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.zeros_like(parameter)
    parts: dict[str, Callable[[], object]] = {
        "draw noise and timesteps": lambda: loss.draw([source], DRAWS),
        "denoiser forward": lambda: loss.loss(embeddings[:, None], drawn),
        "denoiser forward and backward": lambda: loss.gradient(embeddings, drawn),
        "Adam": adam.step,
    }
    milliseconds = {name: took(call, steps).cpu * 1e3 for name, call in parts.items()}
    milliseconds["encode the image (once)"] = took(lambda: encode_images(pipe, images)).cpu * 1e3
    return milliseconds


def per_row(pipe: Any) -> list[dict[str, float]]:
    """Processor milliseconds of a row with its gradient, by the size of a block."""
    length, width = pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim
    table = []
    for n in (1, 2, 4, 8, 16, 32, 64, 192):
        latents, embeddings = torch.randn(n, 4, 16, 16), torch.randn(n, length, width, requires_grad=True)
        timesteps = torch.randint(1000, (n,))

        def step(x: Tensor = latents, t: Tensor = timesteps, y: Tensor = embeddings) -> None:
            predicted = pipe.unet(x, t, encoder_hidden_states=y).sample
            torch.autograd.grad(predicted.square().mean(), [y])

        step()
        table.append({"rows": n, "ms": took(step, max(1, 64 // n)).cpu / n * 1e3})
    return table


def one_row(pipe: Any) -> None:
    """One row through the denoiser."""
    embedding = torch.zeros(1, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim)
    pipe.unet(torch.zeros(1, 4, 16, 16), torch.tensor(1), encoder_hidden_states=embedding)


def bench(images: int, steps: int, processes: int) -> dict[str, Any]:
    """All figures."""
    pipe = load_pipeline("lab")
    given = targets(images, pipe)
    search(pipe, given[:1], 2, DRAWS, 1)  # warm
    batched = {}
    singles = took(lambda: [search(pipe, [target], steps, DRAWS, 1) for target in given])
    for rows in BLOCKS:
        spent = took(lambda rows=rows: search(pipe, given, steps, rows, images))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        batched[str(rows)] = {"seconds": spent.wall, "cpu seconds": spent.cpu, "peak memory so far, MiB": memory}
    best = min(batched, key=lambda rows: batched[rows]["seconds"])
    with frozen(pipe):  # after the searches: its largest block would hide their peak memory
        profile = {"one step of one image, ms": where(pipe, given), "per row, ms": per_row(pipe)}
    apart = separately(images, steps, processes)
    flops = count_flops(pipe.unet, ("one row",), lambda: one_row(pipe))
    return {
        "images": images,
        "steps": steps,
        "draws": DRAWS,
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "singles in one process": {"seconds": singles.wall, "cpu seconds": singles.cpu},
        "singles in processes of their own": apart,
        "batched, by rows at once": batched,
        "best rows": int(best),
        "ratio to singles in one process": batched[best]["seconds"] / singles.wall,
        "ratio in processor time": min(row["cpu seconds"] for row in batched.values()) / singles.cpu,
        "ratio to singles in processes of their own": batched[best]["seconds"] / apart["seconds for all"]
        if apart
        else None,
        "GFLOP of one denoiser row": None if flops is None else flops / 1e9,
        "profile": profile,
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--processes", type=int, default=2, help="single searches to run as processes; 0 leaves them out"
    )
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.one:
        pipe = load_pipeline("lab")
        search(pipe, targets(1, pipe), options.steps, DRAWS, 1)
        return
    text = json.dumps(bench(options.images, options.steps, options.processes), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
