"""Blocks of figures about rewards, from ``bench_token_pruning``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, read, table

SHARES = ("0.75", "0.5", "0.25")
KEPT = [f"{float(share):.0%} kept".replace("%", " %") for share in SHARES]


def _part(name: str) -> Any:
    """One part of the file, None where it was not measured."""
    return (read("token_pruning") or {}).get(name)


def _interval(value: Mapping[str, Any], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def token_pruning_tau() -> str:
    """Agreement of the lab's pruned reward with the whole one, by layer and strategy."""
    measured = _part("agreement")
    if not measured:
        return MISSING
    rows = {row["pruning"]: row for row in measured["rows"]}
    ways = list(dict.fromkeys((text.split("-")[2], text.split("-")[0]) for text in rows))
    lines = [
        [layer, way, *(f"{_interval(row['tau'])}, FLOP {row['flop']:.2f}"
                       for row in (rows[f"{way}-{share}-{layer}"] for share in SHARES))]
        for layer, way in ways
    ]  # fmt: skip
    n = measured["rows"][0]["tau"]["n"]
    text = f"{n} captions of {measured['candidates']} seeds each; intervals are 95 % over captions."
    return table(["after layer (of 4)", "strategy", *KEPT], lines) + "\n\n" + text


def token_pruning_looks() -> str:
    """Tau of pruned looks with the final reward, by layer."""
    measured = _part("agreement")
    if not measured:
        return MISSING
    whole = measured["tau of whole looks"]
    lines = [["all patches", *(f"{value['mean']:.2f}" for value in whole.values())]]
    for row in measured["rows"]:
        _, share, layer = row["pruning"].split("-")
        if "change of looks" in row:
            changes = (f"{value['mean']:+.2f} ({value['low']:+.2f} to {value['high']:+.2f})"
                       for value in row["change of looks"].values())  # fmt: skip
            lines.append([f"{100 * float(share):.0f} % after layer {layer}", *changes])
    return table(["kept (rank)", *(f"look after step {step}" for step in whole)], lines)


def token_pruning_cost() -> str:
    """FLOP and seconds at the published sizes."""
    counted, timed = _part("flop"), _part("seconds") or {}
    if not counted:
        return MISSING
    lines = []
    for name, network in counted.items():
        clock = timed.get(name)
        cells = []
        for share in SHARES:
            seconds = clock["rows"][f"rank-{share}"] if clock else None
            ranged = f"{seconds['median']:.2f} ({seconds['low']:.2f} to {seconds['high']:.2f})" if seconds else ""
            cells.append("; ".join([f"{network['rows'][f'rank-{share}']:.2f}", *([ranged] if ranged else [])]))
        seconds_whole = f"{clock['seconds']:.1f}" if clock else "–"
        lines.append([name, f"{network['flop'] / 1e9:.0f}", seconds_whole, *cells])
    pairs = next(iter(timed.values()))["rows"]["rank-0.5"]["n"] if timed else 0
    text = "Ratio of the FLOP; of the seconds on two threads" + (
        f", median of {pairs} pairs and their range." if timed else ": not measured yet."
    )
    head = ["network", "GFLOP of an image", "seconds", *KEPT]
    return table(head, lines) + f"\n\n{text} Rank strategy, after a third of the layers; random weights."


def token_pruning_steps() -> str:
    """What pruning saves of a step with a look."""
    models = _part("looks")
    if not models:
        return MISSING
    lines = [
        [model, name, f"{row['score in a look']:.0%}", f"{row['saved of a look']:.0%}",
         f"{row['saved of a step with a look']:.1%}", f"{row['saved of one by the whole decoder']:.1%}"]
        for model, priced in models.items() for name, row in priced["rows"].items()
    ]  # fmt: skip
    head = ["model", "network", "score, of a look", "saved of a look", "saved of a step with a look",
            "the same by the whole decoder"]  # fmt: skip
    return table(head, lines).replace("%", " %") + "\n\nCounted, 50 % kept; looks by a tiny autoencoder (TAESD's size)."


BLOCKS = (token_pruning_tau, token_pruning_looks, token_pruning_cost, token_pruning_steps)
