"""Blocks of figures on pruning: every row before DoRI where its captions are gone; shrunk models, and as drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from figures_common import MISSING, counted, gain, points, read, table

#: The model of each file of figures.
FILES = {"pruning": "gallery", "pruning_lab": "lab"}
OTHERS = {"unpruned": "nothing pruned", "adversarial": "adversarial fine-tuning"}
START = {"prompt": "the caption", "gaussian": "noise", "other": "an unrelated caption"}
LAST = "150"  # steps of DoRI that the picture and the answer show
LEFT = 0.2  # of the captions, at most, where pruning has hidden the memories


@dataclass(frozen=True)
class Resistance:
    """A model as it is, one that was pruned until few captions are left, or one after another mitigation.

    Attributes:
        name: of the row of ``measure_pruning.py``.
        sparsity: None where nothing was pruned.
        figures: captions that give their picture, loss on ordinary pictures that no model was trained on; of channels
            the FLOP of the shrunk denoiser over the whole one's.
        quality: of ordinary captions, against the untouched model's; None for that model itself.
        dori: start -> what it brings back of ``suspects`` and ``controls``, by steps.
        speed: of channels the seconds of the whole denoiser over the shrunk one's.
    """

    name: str
    sparsity: float | None
    figures: Mapping[str, Any]
    quality: Mapping[str, Any] | None
    dori: Mapping[str, Mapping[str, Any]]
    speed: Mapping[str, Any] | None

    @property
    def title(self) -> str:
        """Name and sparsity for people."""
        name = OTHERS.get(self.name, self.name.replace("/", ", ").replace("@", ", "))
        return name if self.sparsity is None else f"{name}, {100 * self.sparsity:.0f} %"

    @property
    def brought_back(self) -> Mapping[str, Any]:
        """Of the suspects, in the most steps from the start that brings back most."""
        return max((attacked["suspects"][LAST] for attacked in self.dori.values()), key=lambda share: share["share"])


def resistances(measures: Mapping[str, Any]) -> list[Resistance]:
    """Everything that was put before DoRI: the untouched model, the prunings, the other mitigations."""
    rows = []
    for key, figures in measures.items():
        attacks = {start: measures[name] for start in START if (name := f"dori under {key} from {start}") in measures}
        if attacks:
            name, _, sparsity = key.partition(" at ")
            quality, speed = (measures.get(f"{measure} under {key}") for measure in ("quality", "speed"))
            rows.append(Resistance(name, float(sparsity) if sparsity else None, figures, quality, attacks, speed))
    return sorted(rows, key=lambda row: row.sparsity is None and row.name != "unpruned")


def pruning() -> str:
    """Captions, quality, DoRI and controls of every row, of the gallery where it was measured, else of the lab."""
    for file, model in FILES.items():
        if content := read(file):
            rows = resistances(content["measures"])
            return f"On `{model}`:\n\n{_quality(rows)}\n\nDoRI on the same models:\n\n{_attacks(rows)}"
    return MISSING


def erasure() -> str:
    """The answer to whether any pruner erases, one paragraph for the README."""
    content = read("pruning")
    if not content:
        return MISSING
    rows = resistances(content["measures"])
    pruned = sorted((row for row in rows if row.sparsity is not None), key=lambda row: (row.name, row.sparsity))
    first = {row.name: row for row in reversed(pruned) if row.figures["captions"]["share"] <= LEFT}
    hidden = sorted(first.values(), key=lambda row: row.brought_back["share"])
    if not hidden:
        return MISSING
    saliencies, allocations = ({row.name.partition("/")[part] for row in hidden} for part in (0, 2))
    starts = [title for start, title in START.items() if all(start in row.dori for row in hidden)]
    tried = f"{' or '.join(starts)}, whichever is the stronger," if len(starts) > 1 else f"{starts[0]},"
    text = (
        f"{len(hidden)} prunings, by {len(saliencies)} saliencies and {len(allocations)} ways to spread the pruned "
        "weights over the layers, at the sparsity at which at most a fifth of the captions give their picture: "
        f"DoRI, {LAST} steps from {tried} brings back from {counted(hidden[0].brought_back)} to "
        f"{counted(hidden[-1].brought_back)}. Fewest come back under {hidden[0].title}, for "
        f"{_price(hidden[0], rows[0])}"
    )
    for row in pruned:
        if row.name in first and row.sparsity != first[row.name].sparsity:
            tried = " or ".join(START[start] for start in row.dori)
            text += f". Pruned further, {row.title} leaves {counted(row.brought_back)} from {tried}, for "
            text += _price(row, rows[0])
    for row in rows:
        if row.name == "adversarial":
            text += f"; after adversarial fine-tuning, {counted(row.brought_back)}, for {_price(row, rows[0])}"
    return f"{text}."


def cost(row: Resistance, unpruned: Resistance) -> float:
    """Its loss on ordinary pictures, above the untouched model's."""
    return float(row.figures["loss"] - unpruned.figures["loss"])


def _price(row: Resistance, unpruned: Resistance) -> str:
    return f"{cost(row, unpruned):+.3f} on the loss of ordinary pictures and {_kid(row, 2)} on KID"


def _kid(row: Resistance, digits: int) -> str:
    return gain(row.quality["fidelity"]["change"]["kid"], digits) if row.quality else "–"


def _seconds(row: Resistance) -> str:
    """Of the shrunk denoiser over the whole one's: median, lowest and highest pair."""
    if row.speed is None:
        return "–"
    pairs = row.speed["processor"]
    return "{:.2f} ({:.2f} to {:.2f})".format(*(1 / pairs[end] for end in ("median", "high", "low")))


def _quality(rows: Sequence[Resistance]) -> str:
    scenes = any("scenes" in row.figures for row in rows)
    lines = []
    for row in rows:
        cells = [row.title, f"{row.figures.get('flop', 1):.2f}", _seconds(row), counted(row.figures["captions"])]
        if scenes:
            cells.append(gain(row.figures["scenes"]["change"]) if "scenes" in row.figures else "–")
        loss = f"{cost(row, rows[0]):+.3f}" if row.quality else f"{row.figures['loss']:.3f}"
        lines.append([*cells, loss, _kid(row, 3)])
    heads = [
        "saliency, allocation, sparsity",
        "FLOP",
        "seconds",
        "captions",
        *(["scenes drawn right"] if scenes else []),
    ]
    return table([*heads, "loss", "KID"], lines)


def _attacks(rows: Sequence[Resistance]) -> str:
    """By start; the controls in the most steps."""
    starts = [start for start in START if any(start in row.dori for row in rows)]
    heads = [f"{START[start]}, {title}" for start in starts for title in ("50 steps", LAST, f"controls, {LAST}")]
    lines = [[row.title, *(cell for start in starts for cell in _attack(row.dori.get(start)))] for row in rows]
    return table(["saliency, allocation, sparsity", *(f"from {head}" for head in heads)], lines)


def _attack(dori: Mapping[str, Any] | None) -> list[str]:
    if dori is None:
        return ["–"] * 3
    return [counted(dori["suspects"]["50"]), *(counted(dori[items][LAST]) for items in ("suspects", "controls"))]


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


def pruned_draft() -> str:
    """How well a pruned denoiser looks ahead, beside the whole one at as many counted calls."""
    content = read("pruned_draft")
    if not content or "held out" not in content["measures"]:
        return MISSING
    rows = content["measures"]["held out"]
    prices = list(dict.fromkeys(row["price"] for row in rows))
    cells = {(row["price"], row["calls"]): row for row in rows}
    lines = [
        [str(calls), f"{cells[1.0, calls]['tau']:.3f}", *(_over(cells[price, calls]) for price in prices[1:])]
        for calls in dict.fromkeys(row["calls"] for row in rows)
    ]
    head = ["calls ahead", "tau of the whole model", *(f"draft, {price:.2f} of a call" for price in prices[1:])]
    return (
        f"{table(head, lines)}\n\n{rows[0]['n']} held-out captions of {content['config']['candidates']} seeds; of a "
        "draft tau and, in brackets, how much that is over the whole model's at as many counted calls, 95 % over "
        "captions."
    )


def _over(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    return f"{row['tau']:.3f} ({row['over the whole model']:+.3f}, {low:+.3f} to {high:+.3f})"


def accuracy(value: Mapping[str, Any]) -> str:
    """A mean in per cent with its interval."""
    return " ".join((f"{100 * value['mean']:.0f}", f"({100 * value['low']:.0f} to {100 * value['high']:.0f})"))


BLOCKS = (pruning, erasure, structured_pruning, pruned_draft)
