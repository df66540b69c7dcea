"""What a unit of work costs here: FLOP of a score by trying the reward, seconds by running one step."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffkit.copy_guard import CopyGuard
from diffkit.families import VideoSize
from diffkit.ledger import Prices
from diffkit.rewards.base import EstimateReward, Reward, score_checked
from diffkit.rewards.frames import is_same
from diffkit.seeds import generators
from diffkit.segments import Candidate, run_segment
from ttsnap.search.session import Engine

__all__ = ["Probe", "Trials", "probe_reward", "time_prices", "with_guard"]


class Probe(NamedTuple):
    """FLOP of one score, None when it cannot be counted, and how many images were scored to find out."""

    flop: float | None
    images: int


def probe_reward(reward: Reward, prompt: str, size: tuple[int, int], device: torch.device | str | None = None) -> Probe:
    """Try the reward on two grey images, or one grey video, so that a wrong one is found before anything is denoised.

    A noise-aware reward is tried both ways. Where the reward does not state its FLOP, the trial is counted, and the
    dearer way is its price.

    Args:
        device: of the images, where a search has its own; the CPU when None.

    Raises:
        InputError: it does not return one score for each image.
    """
    images = torch.full(
        (1, size.frames, 3, *size) if isinstance(size, VideoSize) else (2, 3, *size), 0.5, device=device
    )
    levels = [None, 0.0] if isinstance(reward, EstimateReward) else [None]
    counted = []
    for log_snr in levels:
        with FlopCounterMode(display=False) as counter:
            score_checked(reward, images, [prompt] * len(images), log_snr)
        counted.append(counter.get_total_flops() / len(images))
    stated = reward.flops_per_image
    return Probe(max(counted) if stated is None else float(stated), len(images) * len(levels))


def with_guard(verify: float | None, guard: CopyGuard | None) -> float | None:
    """FLOP of scoring an image and checking it by the copy guard; None when one of both is unknown."""
    if guard is None or verify is None:
        return verify
    return None if guard.flops_per_image is None else verify + guard.flops_per_image


class Trials:
    """The last trials of rewards; each holds for its reward, what that states, and that size of images."""

    KEPT = 8

    def __init__(self) -> None:
        self._last: list[tuple[Reward, object, float | None]] = []

    def probe(
        self, reward: Reward, prompt: str, size: tuple[int, int], device: torch.device | str | None = None
    ) -> Probe:
        """As :func:`probe_reward`; no image is scored where an earlier trial holds.

        Raises:
            InputError: see there.
        """
        holds_for = reward.flops_per_image, size, getattr(size, "frames", None), str(device)
        for tried, conditions, flop in self._last:
            if is_same(tried, reward) and conditions == holds_for:
                return Probe(flop, 0)
        probe = probe_reward(reward, prompt, size, device)
        self._last = [*self._last[1 - self.KEPT :], (reward, holds_for, probe.flop)]
        return probe


def time_prices(engine: Engine, size: int | None = None) -> Prices:
    """Seconds of one candidate's call, decoding and scoring in full micro-batches; the second of two runs counts.

    Args:
        size: of a micro-batch; the search's own where None.
    """
    denoising = engine.denoising if size is None else replace(engine.denoising, micro_batch=size)
    size = denoising.micro_batch
    calls = 1 if engine.plan.uncut is None else engine.plan.calls
    batch = [Candidate(index, 0, generator) for index, generator in enumerate(generators(range(size)))]
    took: list[float] = []
    for _ in range(2):
        marks = [time.perf_counter()]
        done = run_segment(engine.pipe, batch, engine.conditioning, denoising, 0, calls, call=engine.call)
        marks.append(time.perf_counter())
        clean = [replace(candidate, latents=candidate.x0) for candidate in done]
        images = engine.scorer.decode(clean, final=True).detach()
        marks.append(time.perf_counter())
        score_checked(engine.reward, images, [engine.prompts[0]] * size)
        if engine.config.copy_guard is not None:
            engine.config.copy_guard.check(images)
        marks.append(time.perf_counter())
        if engine.scorer.cheap:
            engine.scorer.decode(clean, final=False)
            marks.append(time.perf_counter())
        took = [(after - before) / size for before, after in itertools.pairwise(marks)]
        took[0] /= calls
        engine.ledger.calibration_calls += size * calls
        engine.ledger.calibration_images += size
    call, decode, verify, *preview = took
    return Prices(call, decode, verify, preview=preview[0] if preview else None)
