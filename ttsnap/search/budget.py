"""From a budget to a number of candidates: prices are measured, the cost is exact, the budget is not overrun."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffkit.errors import InputError
from diffkit.ledger import Budget, Cost, Prices
from diffkit.rewards.base import EstimateReward, Reward, score_checked
from diffkit.seeds import generators
from diffkit.segments import Candidate, run_segment
from ttsnap.schedules.pruning_schedule import PruningSchedule, candidates_for
from ttsnap.search.session import Engine

__all__ = ["Probe", "affordable", "affordable_count", "flop_limit", "priced", "probe_reward", "resolved", "time_prices"]

TIME_MARGIN = 0.9  # share of a budget in seconds that the search is planned for; the pace of a machine varies


class Affordable(NamedTuple):
    """How many candidates a budget pays for, and their schedule; per prompt, ``limit`` and ``planned`` in FLOP or s."""

    candidates: int
    limit: float
    planned: float
    schedule: PruningSchedule


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
    levels = [None, 0.0] if isinstance(reward, EstimateReward) else [None]
    counted = []
    for log_snr in levels:
        with FlopCounterMode(display=False) as counter:
            score_checked(reward, images, [prompt, prompt], log_snr)
        counted.append(counter.get_total_flops() / len(images))
    stated = reward.flops_per_image
    return Probe(max(counted) if stated is None else float(stated), len(images) * len(levels))


def affordable(
    budget: Budget,
    engine: Engine,
    schedule: PruningSchedule,
    *,
    spent_flop: float,
    began: float,
    seconds: Callable[[], Prices],
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
    calls, cheap = engine.plan.calls, engine.preview_vae is not None
    if budget.unit == "s":
        prices = seconds()
        left = budget.amount * TIME_MARGIN - (time.perf_counter() - began) / len(engine.prompts)
        one = priced(PruningSchedule().cost(1, calls), prices)
        schedule = schedule.resolve(calls, equivalent=max(left / one, 1.0))

        def clock(n: int) -> float:
            stages = schedule.stages(n, calls)
            padded = sum((s.stop - s.start) * engine.denoising.rows(s.candidates) for s in stages)
            return priced(schedule.cost(n, calls, preview=cheap)._replace(calls=padded), prices)

        count = candidates_for(left, clock)
        return Affordable(count, left, clock(count), schedule)
    limit = flop_limit(budget, engine, spent_flop=spent_flop)
    schedule = resolved(engine, limit, schedule)
    count = affordable_count(engine, limit, schedule)
    return Affordable(count, limit, priced(schedule.cost(count, calls, preview=cheap), engine.ledger.flops), schedule)


def flop_limit(budget: Budget, engine: Engine, *, spent_flop: float) -> float:
    """What each prompt may cost in FLOP; ``x`` counts candidates denoised to the end, text and probing aside.

    Raises:
        InputError: the budget is in seconds, or a price is unknown.
    """
    if budget.unit == "s":
        raise InputError("A search by name is planned in counted cost; give its budget as 16x or 3.2TFLOP.")
    if budget.unit == "x":
        return budget.amount * priced(PruningSchedule().cost(1, engine.plan.calls), engine.ledger.flops)
    return budget.amount - spent_flop


def time_prices(engine: Engine, size: int | None = None) -> Prices:
    """Seconds of one candidate's call, decoding and scoring in full micro-batches; the second of two runs counts.

    Args:
        size: of a micro-batch; the search's own where None.
    """
    denoising = engine.denoising if size is None else replace(engine.denoising, micro_batch=size)
    size = denoising.micro_batch
    batch = [Candidate(index, 0, generator) for index, generator in enumerate(generators(range(size)))]
    took: list[float] = []
    for _ in range(2):
        marks = [time.perf_counter()]
        done = run_segment(engine.pipe, batch, engine.conditioning, denoising, 0, 1, call=engine.call)
        marks.append(time.perf_counter())
        latents = torch.cat([one.x0 for one in done if one.x0 is not None])
        images = engine.decode(latents, final=True).detach()
        marks.append(time.perf_counter())
        score_checked(engine.reward, images, [engine.prompts[0]] * size)
        marks.append(time.perf_counter())
        if engine.preview_vae is not None:
            engine.decode(latents, final=False)
            marks.append(time.perf_counter())
        took = [(after - before) / size for before, after in itertools.pairwise(marks)]
        engine.ledger.calibration_calls += size
        engine.ledger.calibration_images += size
    call, decode, verify, *preview = took
    return Prices(call, decode, verify, preview=preview[0] if preview else None)


def priced(cost: Cost, prices: Prices) -> float:
    """The cost in the unit of the prices.

    Raises:
        InputError: a price is unknown.
    """
    total = cost.at(prices)
    if total is None:
        raise InputError(
            "The FLOP of a denoiser call or a decoding could not be counted, so this budget cannot be kept; give "
            "num_candidates, or a budget in seconds."
        )
    return total


def resolved(engine: Engine, limit: float, schedule: PruningSchedule) -> PruningSchedule:
    """What the schedule is at a limit in FLOP; a fitted one changes with the budget.

    Raises:
        InputError: a price is unknown, or it does not fit the denoising.
    """
    one = priced(PruningSchedule().cost(1, engine.plan.calls), engine.ledger.flops)
    found = schedule.resolve(engine.plan.calls, equivalent=max(limit / one, 1.0))
    found.validate(engine.plan.calls)
    return found


def affordable_count(engine: Engine, limit: float, schedule: PruningSchedule, *, at_least: int = 1) -> int:
    """The most candidates for each prompt whose exact cost stays within ``limit`` FLOP.

    Args:
        at_least: how many must be left after the last look.

    Raises:
        InputError: fewer are left, or not even one candidate fits.
    """
    calls, prices, cheap = engine.plan.calls, engine.ledger.flops, engine.preview_vae is not None
    n = candidates_for(limit, lambda count: priced(schedule.cost(count, calls, preview=cheap), prices))
    left = [n, *schedule.survivors(n)][-1]
    if left < at_least:
        raise InputError(
            f"The budget pays for {n} candidates, of which {left} reach the end, fewer than the {at_least} images "
            f"asked for; raise it."
        )
    return n
