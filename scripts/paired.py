"""Two calls in turns, and the ratios of their seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Call = Callable[[], Any]


def paired_seconds(first: Call, second: Call, pairs: int) -> dict[str, Any]:
    """Seconds of the first call over those of the second, after one call of each that is not counted.

    Returns:
        ``seconds`` of the processor, the first call's median; ``processor`` and ``clock``, of the ratios of the pairs
        the median, the lowest and the highest. A busy machine lengthens the clock's more than the processor's.
    """
    both = (first, second)
    for call in both:
        clocked(call)
    seconds: list[list[tuple[float, float]]] = [[], []]
    for pair in range(pairs):
        for place in (0, 1) if pair % 2 else (1, 0):
            seconds[place].append(clocked(both[place]))
    return {
        "seconds": statistics.median(processor for processor, _ in seconds[0]),
        "processor": spread([a[0] / b[0] for a, b in zip(*seconds, strict=True)]),
        "clock": spread([a[1] / b[1] for a, b in zip(*seconds, strict=True)]),
    }


def clocked(call: Call) -> tuple[float, float]:
    """Seconds of the processor and of the clock of one call."""
    began = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - began[0], time.perf_counter() - began[1]


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median, lowest, highest."""
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "n": len(ratios)}
