"""Blocks of figures on pruning: every row before DoRI where its captions are gone; shrunk models, and as drafts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from figures_common import MISSING, counted, gain, points, read, table

#: The model of each file of figures.
FILES = {"pruning": "gallery", "pruning_lab": "lab"}
OTHERS = {"unpruned": "nothing pruned", "adversarial": "adversarial fine-tuning"}
START = {"prompt": "the caption", "gaussian": "noise", "other": "an unrelated caption"}


LAST = "150"  # steps of DoRI that the picture and the answer show
LEFT = 0.2  # of the captions, at most, where pruning has hidden the memories


class Resistance(NamedTuple):
    """A model as it is, one that was pruned until few captions are left, or one after another mitigation.

    Attributes:
        name: of the row of ``measure_pruning.py``.
        sparsity: None where nothing was pruned.
        captions: how many give their picture.
        loss: on ordinary pictures that no model was trained on.
        dori: what it brings back of ``suspects`` and ``controls``, by steps.
        figures: all of the row; ``quality`` is missing of the model as it is.
    """

    name: str
    sparsity: float | None
    captions: Mapping[str, Any]
    loss: float
    dori: Mapping[str, Any]
    figures: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name and sparsity for people."""
        name = OTHERS.get(self.name, self.name.replace("/", ", ").replace("@", ", "))
        return name if self.sparsity is None else f"{name}, {100 * self.sparsity:.0f} %"


def resistances(measures: Mapping[str, Any]) -> list[Resistance]:
    """Everything that was put before DoRI: the untouched model, the prunings, the other mitigations."""
    rows = []
    for key, attacked in measures.items():
        if "dori" in attacked:
            name = key.removeprefix("dori under ")
            figures = measures[name] | attacked
            base, _, sparsity = name.partition(" at ")
            measured = (figures["captions"], figures["loss"], figures["dori"], figures)
            rows.append(Resistance(base, float(sparsity) if sparsity else None, *measured))
    return sorted(rows, key=lambda row: row.sparsity is None and row.name != "unpruned")


def pruning() -> str:
    """Captions, DoRI, controls and quality of every row, of the gallery where it was measured, else of the lab."""
    for file, model in FILES.items():
        if content := read(file):
            starts = " and ".join(START[name] for name in content["config"]["starts"])
            return f"On `{model}`, DoRI from {starts}:\n\n{_table(content['measures'])}"
    return MISSING


def erasure() -> str:
    """The answer to whether any pruner erases, one paragraph for the README."""
    content = read("pruning")
    if not content:
        return MISSING
    measures = content["measures"]
    rows = resistances(measures)
    hidden = [row for row in rows if row.sparsity is not None and row.captions["share"] <= LEFT]
    if not hidden:
        return MISSING
    hidden.sort(key=lambda row: row.dori["suspects"][LAST]["count"])
    least, most = (row.dori["suspects"][LAST] for row in (hidden[0], hidden[-1]))
    saliencies, allocations = ({row.name.partition("/")[part] for row in hidden} for part in (0, 2))
    text = (
        f"{len(hidden)} prunings, by {len(saliencies)} saliencies and {len(allocations)} ways to spread the pruned "
        "weights over the layers, at the sparsity at which at most a fifth of the captions give their picture: "
        f"DoRI, {LAST} steps, brings back from {counted(least)} to {counted(most)}. Fewest come back under "
        f"{hidden[0].title}, for {price(hidden[0], measures)}"
    )
    for row in rows:
        if row.name == "adversarial":
            left = counted(row.dori["suspects"][LAST])
            text += f"; after adversarial fine-tuning, {left}, for {price(row, measures)}"
    return f"{text}."


def price(row: Resistance, measures: Mapping[str, Any]) -> str:
    """What it costs in ordinary pictures."""
    kid = row.figures["quality"]["fidelity"]["change"]["kid"]
    return f"{cost(row, measures)} on the loss of ordinary pictures and {gain(kid, 2)} on KID"


def cost(row: Resistance, measures: Mapping[str, Any]) -> str:
    """Its loss on ordinary pictures, above the untouched model's."""
    return f"{row.loss - measures['unpruned']['loss']:+.3f}"


def _table(measures: Mapping[str, Any]) -> str:
    scenes = any("scenes" in row for row in measures.values())
    rows = []
    for row in resistances(measures):
        quality = row.figures.get("quality")
        cells = [row.title, f"{row.figures.get('flop', 1):.2f}", counted(row.captions), *_attacks(row.dori)]
        if scenes:
            cells.append(gain(row.figures["scenes"]["change"]) if "scenes" in row.figures else "–")
        cells.append(cost(row, measures) if quality else f"{row.loss:.3f}")
        rows.append([*cells, gain(quality["fidelity"]["change"]["kid"], 3) if quality else "–"])
    heads = ["saliency, allocation, sparsity", "FLOP", "captions", "DoRI, 50 steps", "150", "controls, 50", "150"]
    return table([*heads, *(["scenes drawn right"] if scenes else []), "loss", "KID"], rows)


def _attacks(dori: Mapping[str, Any]) -> list[str]:
    return [counted(dori[items][budget]) for items in ("suspects", "controls") for budget in ("50", LAST)]


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
