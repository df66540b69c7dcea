"""The block of figures about structured pruning, from ``bench_structured_pruning``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, read, table
from figures_memorization import points


def structured_pruning() -> str:
    """Speed of a shrunk denoiser beside what its FLOP promise, and what the lab's model still draws."""
    found = read("structured_pruning")
    if not found:
        return MISSING
    speed, quality = found["speed"], found.get("quality")
    rows = []
    for name, row in speed["models"].items():
        ratio = row["processor"]
        measured = f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        promised = [f"{row['weights']:.2f}", f"{row['flop']:.2f}"]
        kept = f"{ratio['median'] / row['flop']:.2f}"
        rows.append([name, *promised, measured, f"{row['clock']['median']:.2f}", kept])
    head = ["denoiser", "weights", "FLOP", "seconds", "seconds by the clock", "of what FLOP promise"]
    n = next(iter(speed["models"].values()))["processor"]["n"]
    text = (
        f"{100 * speed['sparsity']:.0f} % of the units off, `uniform`; whole over shrunk, {n} pairs of calls in turns "
        f"on one thread of a busy machine (load {speed['load']:.1f}): seconds of the processor as median, lowest and "
        "highest pair, those of the clock as median.\n\n"
    )
    text += table(head, rows)
    if quality is None:
        return f"{text}\n\nThe quality of what a shrunk model draws was not measured yet."
    rows = [["none", accuracy(next(iter(quality["rows"].values()))["before"]), "–"]]
    rows += [[name, accuracy(row["after"]), points(row["change"])] for name, row in quality["rows"].items()]
    return (
        f"{text}\n\nQuality of the lab's model, without training after it: {quality['scenes']} held-out scenes, "
        f"{quality['seeds']} seed(s) each, 95 % over scenes.\n\n"
        + table(["saliency, share off", "scenes drawn right, %", "change, points"], rows)
    )


def accuracy(value: Mapping[str, Any]) -> str:
    """A mean in per cent with its interval."""
    return " ".join((f"{100 * value['mean']:.0f}", f"({100 * value['low']:.0f} to {100 * value['high']:.0f})"))


BLOCKS = (structured_pruning,)
