"""Time TTSnapPipeline against the stock pipeline, and count how many seeds pruning sees at equal cost.

One process, interleaved repeats: the stock pipeline's 16 images and their scoring against best-of-16 through
TTSnapPipeline with the same seeds; then a pruned search with the budget "16x".

    python scripts/bench_ttsnap.py [--model lab] [--untrained] [--repeats 5] [--json figures.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffkit.loading import load_pipeline
from diffkit.rewards import load_reward
from diffkit.rewards.base import Reward, as_reward
from diffkit.seeds import candidate_seed, generators
from ttsnap import TTSnapPipeline

PROMPT = "a red circle left of a blue square on gray"
CANDIDATES = 16


def small_network(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
    """A stand-in for the lab's reward beside untrained weights: a fixed convolution and its mean."""
    weight = torch.linspace(-1, 1, 8 * 3 * 8 * 8).view(8, 3, 8, 8)
    return torch.nn.functional.conv2d(images, weight, stride=4).relu().mean((1, 2, 3))


def stock(pipe: Any, reward: Reward, options: dict[str, Any], seeds: Sequence[int]) -> torch.Tensor:
    """Scores of the stock pipeline's images of these seeds, all in one call as a user would make it."""
    images = pipe(
        PROMPT, **options, generator=generators(seeds), num_images_per_prompt=len(seeds), output_type="pt"
    ).images
    return reward.score(images, [PROMPT] * len(seeds))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(arguments.threads)
    if arguments.untrained:
        from diffkit.lab.train.denoiser import new_pipeline

        pipe, reward = new_pipeline(seed=0), as_reward(small_network)
    else:
        pipe, reward = load_pipeline(arguments.model), load_reward(arguments.reward)
    pipe.set_progress_bar_config(disable=True)
    search = TTSnapPipeline.from_pipe(pipe, reward=reward)
    options = {"num_inference_steps": arguments.steps, "guidance_scale": 3.0}
    seeds = [candidate_seed(7, 0, index) for index in range(CANDIDATES)]
    search(PROMPT, **options, seeds=seeds)  # warm up; the reward is tried and FLOP are counted once
    stock(pipe, reward, options, seeds)
    plain, ours, pruned = [], [], []
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        scores = stock(pipe, reward, options, seeds)
        plain.append(time.perf_counter() - began)
        began = time.perf_counter()
        best = search(PROMPT, **options, seeds=seeds, micro_batch=arguments.micro_batch)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        many = search(PROMPT, **options, budget=f"{CANDIDATES}x", schedule=arguments.schedule, seed=7)
        pruned.append(time.perf_counter() - began)
    assert best.seeds[0] == seeds[int(scores.argmax())], "the searches disagree about the winner"
    seen = len(many.trace[0].candidates)
    return {
        "model": "untrained" if arguments.untrained else arguments.model,
        "steps": arguments.steps,
        "threads": arguments.threads,
        "device": str(pipe.device),
        "repeats": arguments.repeats,
        "stock_seconds": plain,
        "ttsnap_seconds": ours,
        "ratio": statistics.median(after / before for before, after in zip(plain, ours, strict=True)),
        "pruned": {
            "schedule": arguments.schedule,
            "budget": f"{CANDIDATES}x",
            "seeds_seen": seen,
            "seeds_ratio": seen / CANDIDATES,
            "seconds": pruned,
            "seconds_ratio": statistics.median(after / before for before, after in zip(ours, pruned, strict=True)),
            "reward": many.rewards[0],
            "ledger": many.ledger.to_dict(),
        },
        "best_of_16_reward": best.rewards[0],
        "best_of_16_ledger": best.ledger.to_dict(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab")
    parser.add_argument("--reward", default="lab")
    parser.add_argument("--untrained", action="store_true", help="random weights of the lab's shape")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--schedule", default="2:0.4,6:0.4,11:0.5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    figures = measure(arguments)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    pruned = figures["pruned"]
    print(f"stock, 16 images and scoring: {statistics.median(figures['stock_seconds']):.2f} s")
    print(f"TTSnapPipeline, best of 16:   {statistics.median(figures['ttsnap_seconds']):.2f} s")
    print(f"ratio {figures['ratio']:.3f} (median of {figures['repeats']} interleaved pairs; wanted: at most 1.10)")
    print(
        f"pruned {pruned['schedule']} at the cost of best-of-16: {pruned['seeds_seen']} seeds, "
        f"{pruned['seeds_ratio']:.2f} times as many (wanted: at least 2), {pruned['seconds_ratio']:.2f} of the time"
    )


if __name__ == "__main__":
    main()
