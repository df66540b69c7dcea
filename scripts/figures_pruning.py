"""Blocks of figures on pruning: every saliency and allocation at the sparsity where captions are gone, before DoRI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from figures_common import MISSING, gain, read, table
from figures_memorization import counted

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
            row.name.replace("/", ", "),
            f"{row.sparsity:g}",
            counted(row.figures["captions"]),
            *_attacks(row.resistance["dori"]),
            gain(row.figures["scenes"]["change"]),
            f"{row.figures['loss']:.3f}",
            gain(row.resistance["quality"]["fidelity"]["change"]["kid"], 4),
        ]
        for row in prunings(measures)
    ]
    heads = ["saliency, allocation", "sparsity", "captions", "DoRI, 50 steps", "150", "controls, 50", "150"]
    return table([*heads, "scenes drawn right", "loss", "KID"], rows)


def _attacks(dori: Mapping[str, Any]) -> list[str]:
    return [counted(dori[items][budget]) for items in ("suspects", "controls") for budget in ("50", "150")]


BLOCKS = (pruning,)
