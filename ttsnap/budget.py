"""From a budget to a number of candidates: prices are measured, the cost is exact, the budget is not overrun."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffkit.compute import Budget, Cost, Ledger, Prices
from diffkit.errors import InputError
from diffkit.latents import decode_latents
from diffkit.rewards.base import NoiseAwareReward, Reward, score_checked
from diffkit.seeds import generators
from diffkit.segments import Candidate, run_segment
from ttsnap.run import Search
from ttsnap.schedule import PruningSchedule, candidates_for

__all__ = ["Probe", "affordable", "probe_reward", "time_prices"]

TIME_MARGIN = 0.9  # share of a budget in seconds that the search is planned for; the pace of a machine varies


class Affordable(NamedTuple):
    """How many candidates a budget pays for; ``limit`` and ``planned`` are per prompt, in FLOP or seconds."""

    candidates: int
    limit: float
    planned: float


class Probe(NamedTuple):
    """FLOP of one score, None when it cannot be counted, and how many images were scored to find out."""

    flop: float | None
    images: int


def probe_reward(reward: Reward, prompt: str, size: tuple[int, int]) -> Probe:
    """Try the reward on two grey images, so that a wrong one is found before anything is denoised.

    A noise-aware reward is tried both ways. Where the reward does not state its FLOP, the trial is counted, and the
    dearer way is its price.

    Raises:
        InputError: it does not return one score for each image.
    """
    images = torch.full((2, 3, *size), 0.5)
    levels = [None, 0.0] if isinstance(reward, NoiseAwareReward) else [None]
    counted = []
    for log_snr in levels:
        with FlopCounterMode(display=False) as counter:
            score_checked(reward, images, [prompt, prompt], log_snr)
        counted.append(counter.get_total_flops() / len(images))
    stated = reward.flops_per_image
    return Probe(max(counted) if stated is None else float(stated), len(images) * len(levels))


def affordable(
    budget: Budget, search: Search, *, spent_flop: float, began: float, seconds: Callable[[], Prices]
) -> Affordable:
    """The most candidates for each prompt whose exact cost stays inside the budget.

    Args:
        budget: for each prompt.
        spent_flop: already spent for each prompt, on text and probing.
        began: ``time.perf_counter()`` when the clock of a budget in seconds started.
        seconds: measures the prices in seconds; only called for such a budget.

    Raises:
        InputError: not even one candidate fits, or a price is unknown.
    """
    schedule, calls = search.schedule, search.plan.calls
    if budget.unit == "s":
        prices = seconds()
        size = search.denoising.micro_batch
        left = budget.amount * TIME_MARGIN - (time.perf_counter() - began) / len(search.prompts)

        def clock(n: int) -> float:
            stages = schedule.stages(n, calls)
            padded = sum((s.stop - s.start) * math.ceil(s.candidates / size) * size for s in stages)
            return _priced(schedule.cost(n, calls)._replace(calls=padded), prices)

        count = candidates_for(left, clock)
        return Affordable(count, left, clock(count))

    def flop(n: int) -> float:
        return _priced(schedule.cost(n, calls), search.ledger.flops)

    if budget.unit == "x":
        limit = budget.amount * _priced(PruningSchedule().cost(1, calls), search.ledger.flops)
    else:
        limit = budget.amount - spent_flop
    count = candidates_for(limit, flop)
    return Affordable(count, limit, flop(count))


def _priced(cost: Cost, prices: Prices) -> float:
    total = cost.at(prices)
    if total is None:
        raise InputError(
            "The FLOP of a denoiser call or a decoding could not be counted, so this budget cannot be kept; give "
            "num_candidates, or a budget in seconds."
        )
    return total


def time_prices(search: Search, ledger: Ledger, prompts: Sequence[str]) -> Prices:
    """Seconds of one candidate's call, decoding and scoring in full micro-batches; the second of two runs counts."""
    size = search.denoising.micro_batch
    batch = [Candidate(index, 0, generator) for index, generator in enumerate(generators(range(size)))]
    took: list[float] = []
    for _ in range(2):
        marks = [time.perf_counter()]
        done = run_segment(search.pipe, batch, search.conditioning, search.denoising, 0, 1, call=search.call)
        marks.append(time.perf_counter())
        images = decode_latents(search.pipe, torch.cat([one.x0 for one in done if one.x0 is not None])).detach()
        marks.append(time.perf_counter())
        score_checked(search.reward, images, [prompts[0]] * size)
        marks.append(time.perf_counter())
        took = [(after - before) / size for before, after in itertools.pairwise(marks)]
        ledger.calibration_calls += size
        ledger.calibration_images += size
    return Prices(*took)
