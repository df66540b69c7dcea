"""Real architectures on an accelerator: the stock pipeline against best-of-N and pruned search, and training steps.

    python scripts/bench_families.py [--families sd15:16,sdxl:8,sd35-medium:8,flux:4] [--compile] [--json F]
    python scripts/bench_families.py --tiny --device cpu     # tiny pipelines of the same classes, to try the script

Denoisers and autoencoders have the published sizes and random weights, text encoders the published widths and one
layer: a prompt is encoded once. The verifier has the size of CLIP ViT-L/14. One process, one machine: the stock
pipeline's images and their scores, the same seeds through TTSnapPipeline, then a pruned search and a lookahead search
at the same counted cost, and each with the stock pipeline's seconds as its budget. Then, for each number of draws, one
step of DoRI (gradient of the embedding, with gradient checkpointing and without) and one of fine-tuning (gradients of
all weights). Prints machine, versions, seconds, memory, and ratios. The file is written after each part; an error, such
as lack of memory, is written down in its place.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from architectures import REAL  # first: it makes the tests' tiny pipelines importable
from tiny_families import FAMILY_ROWS, family_pipeline
from torch import Tensor

from diffkit.conditioning import encode_prompts, initial_latents, predict_noise
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser
from diffkit.gradient_checkpointing import gradient_checkpointing
from diffkit.seeds import candidate_seed, generators
from diffkit.training_objective import noised
from ttsnap import TTSnapPipeline

PROMPT, SCHEDULE = "a cat", "2:0.4,6:0.4,11:0.5"
Parts = Iterator[tuple[str, Callable[[], Any]]]
TINY = {"sd15": "sd1", "sdxl": "sdxl", "sd35-medium": "sd3", "flux": "flux"}


def build(name: str, options: argparse.Namespace) -> Any:
    """The pipeline on the device, in the precision asked for; weights are made there, not on the host."""
    dtype = getattr(torch, options.dtype)
    if options.tiny:
        return family_pipeline(TINY[name]).to(options.device, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(options.device):
            pipe = REAL[name]()
    finally:
        torch.set_default_dtype(before)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(options.device, dtype).eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    if options.channels_last and hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)
    if options.compile:
        pipe_denoiser(pipe).compile()
    return pipe


class Verifier:
    """Scores of a randomly initialised CLIP vision tower: the published sizes, no meaning."""

    name, higher_is_better, range = "random-clip", True, (float("-inf"), float("inf"))
    flops_per_image = None

    def __init__(self, device: str, *, tiny: bool) -> None:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
        config = transformers.CLIPVisionConfig(image_size=224, patch_size=14, **(small if tiny else large))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = transformers.CLIPVisionModel(config).to(device).eval()
        self.device = device

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) scores."""
        small = torch.nn.functional.interpolate(images.to(self.device).float(), size=(224, 224))
        scores: Tensor = self.model(small).pooler_output[:, 0].float()
        return scores


def synchronized(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def took(call: Callable[[], object], device: str, repeats: int) -> dict[str, float | None]:
    """Median seconds and peak memory in GiB, after one call to warm up."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    call()
    synchronized(device)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        synchronized(device)
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def searches(pipe: Any, name: str, count: int, options: argparse.Namespace) -> Parts:
    """Stock, best-of-N and pruned search over ``count`` candidates."""
    reward = Verifier(options.device, tiny=options.tiny)
    search = TTSnapPipeline.from_pipe(pipe, reward=reward)
    given = {"num_inference_steps": options.steps, **(FAMILY_ROWS[TINY[name]].options if options.tiny else {})}
    seeds = [candidate_seed(7, 0, index) for index in range(count)]
    ways = {"pruned": {"schedule": SCHEDULE}, "lookahead": {"schedule": "1:0.06+3"}}
    size, times, results = options.micro_batch, {}, {}

    def stock() -> None:
        for first in range(0, len(seeds), size):
            part = generators(seeds[first : first + size])
            images = pipe(PROMPT, **given, generator=part, num_images_per_prompt=len(part), output_type="pt").images
            reward.score(images, [PROMPT] * len(part))

    def best_of() -> None:
        results["best of N"] = search(PROMPT, **given, seeds=seeds, micro_batch=size)

    def at_cost(kind: str) -> None:
        results[kind] = search(PROMPT, **given, seed=7, budget=f"{count}x", **ways[kind], micro_batch=size)

    def in_time(kind: str) -> None:
        limit = f"{times['stock']['seconds']:.3f}s"
        results[f"{kind} in time"] = search(PROMPT, **given, seed=7, budget=limit, **ways[kind], micro_batch=size)

    def timed(part: str, call: Callable[[], object]) -> dict[str, float | None]:
        times[part] = took(call, options.device, options.repeats)
        return times[part]

    def looked_at(kind: str) -> int:
        return len(results[kind].trace[0].candidates)

    def ratio() -> float:
        return float(times["best of N"]["seconds"]) / float(times["stock"]["seconds"])

    def shares() -> dict[str, float]:
        clocks = {part: value for part, value in results["best of N"].ledger.seconds.items() if part != "total"}
        return {part: value / sum(clocks.values()) for part, value in clocks.items()}

    def strict() -> float:
        winner = search(PROMPT, **given, seeds=seeds[:2], micro_batch=1, output_type="pt")
        alone = pipe(PROMPT, **given, generator=generators(winner.seeds[:1])[0], output_type="pt").images
        return float((winner.images.float() - alone.float()).abs().max())

    yield "stock", lambda: timed("stock", stock)
    yield "images a second, stock", lambda: count / float(times["stock"]["seconds"])
    yield "best of N", lambda: timed("best of N", best_of)
    yield "overhead of best of N", ratio
    yield "shares of best of N", shares
    for kind in options.ways.split(","):
        yield f"{kind} at the same cost", partial(timed, kind, partial(at_cost, kind))
        yield f"candidates, {kind} at the same cost", partial(looked_at, kind)
        yield f"{kind} in the stock's time", partial(timed, f"{kind} in time", partial(in_time, kind))
        yield f"candidates, {kind} in the stock's time", partial(looked_at, f"{kind} in time")
    yield "strict mode, largest difference to the stock image", strict


def attack_step(pipe: Any, draws: int, options: argparse.Namespace, *, checkpointing: bool) -> dict[str, Any]:
    """One step of DoRI with its draws at once: the gradient of the embedding by the model's own loss."""
    embeds, loss = _own_loss(pipe, draws, options)

    def attack() -> None:
        sequence = embeds.float().requires_grad_(True)
        torch.autograd.grad(loss(sequence), [sequence])

    with gradient_checkpointing(pipe_denoiser(pipe), on_cpu=True) if checkpointing else nullcontext():
        return took(attack, options.device, options.repeats)


def tuning_step(pipe: Any, draws: int, options: argparse.Namespace) -> dict[str, Any]:
    """Gradients of all weights of the denoiser, with gradient checkpointing, by the model's own loss."""
    denoiser = pipe_denoiser(pipe)
    embeds, loss = _own_loss(pipe, draws, options)

    def tune() -> None:
        loss(embeds).backward()
        denoiser.zero_grad(set_to_none=True)

    denoiser.requires_grad_(True).train()
    try:
        with gradient_checkpointing(denoiser, on_cpu=True):
            return took(tune, options.device, options.repeats)
    finally:
        denoiser.requires_grad_(False).eval()


def _own_loss(pipe: Any, rows: int, options: argparse.Namespace) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The caption's embedding, a row for each draw, and the training loss as a function of it."""
    embeds = encode_prompts(pipe, [PROMPT], guidance=False).positive.to(options.device).repeat(rows)
    clean = initial_latents(pipe, generators(range(rows))).to(options.device, embeds.prompt_embeds.dtype)
    noise, draws = torch.randn_like(clean), torch.Generator().manual_seed(0)
    timesteps = torch.randint(1, pipe.scheduler.config.num_train_timesteps, (rows,), generator=draws)
    noisy, target = noised(pipe.scheduler, clean.float(), noise.float(), timesteps.to(options.device))

    def loss(sequence: Tensor) -> Tensor:
        given = embeds.replace(prompt_embeds=sequence.to(embeds.prompt_embeds.dtype))
        predicted = predict_noise(pipe, noisy.to(clean), timesteps.to(options.device), given)
        return (predicted.float() - target).square().mean()

    return embeds.prompt_embeds, loss


def parts_of(pipe: Any, name: str, count: int, options: argparse.Namespace) -> Parts:
    """All that is measured on one family."""
    yield "denoiser, million parameters", lambda: round(sum(p.numel() for p in pipe_denoiser(pipe).parameters()) / 1e6)
    if "searches" in options.only:
        yield from searches(pipe, name, count, options)
    counts = [int(draws) for draws in options.draws.split(",")]
    for draws in counts if "tuning" in options.only else ():
        yield f"fine-tuning, {draws} rows, gradient checkpointing", partial(tuning_step, pipe, draws, options)
    attack = partial(attack_step, pipe, options=options)
    for draws in counts if "attack" in options.only else ():
        yield f"DoRI, {draws} draws, gradient checkpointing", partial(attack, draws, checkpointing=True)
    for draws in counts if "attack" in options.only else ():  # last: lack of memory can harm what follows
        yield f"DoRI, {draws} draws", partial(attack, draws, checkpointing=False)


def measure(name: str, count: int, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The figures of one family, part by part."""
    for part, call in parts_of(build(name, options), name, count, options):
        print(f"{name}: {part}", file=sys.stderr)
        try:
            yield part, call()
        except (RuntimeError, InputError) as error:  # lack of memory is a RuntimeError
            yield part, f"{type(error).__name__}: {str(error).splitlines()[0]}"
        except KeyError:  # a figure of a part that failed
            yield part, None


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(REAL), help="name or name:candidates, with commas")
    parser.add_argument("--tiny", action="store_true", help="tiny pipelines of the same classes")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=4)
    parser.add_argument("--only", default="searches,attack,tuning", help="parts, comma separated")
    parser.add_argument("--ways", default="pruned,lookahead", help="searches beside best-of-N, comma separated")
    parser.add_argument("--draws", default="4", help="rows of a training step, comma separated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile of the denoiser")
    parser.add_argument("--channels-last", action="store_true", help="for U-Nets")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor()
    versions = {part.__name__: part.__version__ for part in (torch, diffusers, transformers)}
    settings = {key: value for key, value in vars(options).items() if key != "json"}
    found: dict[str, Any] = {"machine": machine, "versions": versions, "settings": settings, "families": {}}
    for given in options.families.split(","):
        name, _, count = given.partition(":")
        figures = found["families"].setdefault(name, {"candidates": int(count or options.candidates)})
        for part, figure in measure(name, figures["candidates"], options):
            figures[part] = figure
            text = json.dumps(found, indent=1)
            if options.json:
                options.json.write_text(text + "\n")
        gc.collect()
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
    print(text)


if __name__ == "__main__":
    main()
