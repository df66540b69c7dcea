"""Blocks of figures on pruning: every row before DoRI where its captions are gone, and the speed of shrunk models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from figures_common import MISSING, gain, read, table
from figures_memorization import counted, points

#: The model of each file of figures.
FILES = {"pruning": "gallery", "pruning_lab": "lab"}


class Pruning(NamedTuple):
    """A row of ``measure_pruning.py`` at the sparsity where few captions are left."""

    name: str
    sparsity: float
    figures: Mapping[str, Any]
    resistance: Mapping[str, Any]


def prunings(measures: Mapping[str, Any]) -> Iterator[Pruning]:
    """The rows that were put before DoRI."""
    for key, resistance in measures.items():
        if match := re.fullmatch(r"dori under (.+) at (.+)", key):
            name, sparsity = match.groups()
            yield Pruning(name, float(sparsity), measures[f"{name} at {sparsity}"], resistance)


def pruning() -> str:
    """Captions, DoRI, controls and quality of every row, of the gallery where it was measured, else of the lab."""
    for file, model in FILES.items():
        if content := read(file):
            return f"On `{model}`:\n\n{_table(content['measures'])}"
    return MISSING


def _table(measures: Mapping[str, Any]) -> str:
    plain = measures["unpruned"]
    rows = [["none", "0", counted(plain["captions"]), *_attacks(plain["dori"]), "–", f"{plain['loss']:.3f}", "–"]]
    rows += [
        [
            row.name.replace("/", ", ").replace("@", ", "),
            f"{row.sparsity:g}",
            counted(row.figures["captions"]),
            *_attacks(row.resistance["dori"]),
            gain(row.figures["scenes"]["change"]) if "scenes" in row.figures else "–",
            f"{row.figures['loss']:.3f}",
            gain(row.resistance["quality"]["fidelity"]["change"]["kid"], 4),
        ]
        for row in prunings(measures)
    ]
    heads = ["saliency, allocation", "sparsity", "captions", "DoRI, 50 steps", "150", "controls, 50", "150"]
    return table([*heads, "scenes drawn right", "loss", "KID"], rows)


def _attacks(dori: Mapping[str, Any]) -> list[str]:
    return [counted(dori[items][budget]) for items in ("suspects", "controls") for budget in ("50", "150")]


def structured_pruning() -> str:
    """Speed of a shrunk denoiser beside what its FLOP promise, and what the lab's model still draws."""
    content = read("structured_pruning")
    if not content:
        return MISSING
    speed, quality = content["speed"], content.get("quality")
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
        "on one thread: seconds of the processor as median, lowest and highest pair, those of the clock as median.\n\n"
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


BLOCKS = (pruning, structured_pruning)
