"""Evidence of an audit: which statistic separates best, how often a null suspect is called, and what is found.

    python scripts/measure_evidence.py --audit RUN    # keep an audit's similarities
    python scripts/measure_evidence.py [--parts separation,false,power,controls,mitigations] [--audits 400]

The audit is that of ``measure_many.py`` over the whole ladder: one attack from one start, all items also on the
reference model. ``evidence_records.json`` keeps its similarities, so that the rest needs no model. Power is simulated
for a second attack as well, that of ``measure_mitigations.py`` on NeMo: more steps from two starts, its last look only.
The figures go to ``evidence.json`` and ``evidence.png``, part by part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evidence_records import Item, read_items, record_audit
from evidence_simulation import (
    CONTROLS,
    RANKS,
    SUSPECTS,
    VERDICTS,
    WITHOUT,
    Layout,
    Population,
    Tail,
    counted,
    false_positives,
    power,
    with_tail,
)
from evidence_statistics import STATISTICS, at_looks, caption, highest, separation
from matplotlib.figure import Figure

from diffkit.console import say
from diffkit.report.plots import PALETTE
from memorization.auditing.evidence import to_z

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
RECORDS = FIGURES / "evidence_records.json"
SIMULATED = (
    "highest look",
    "highest look of the mean over generations",
    "highest look less start",
    "caption plus highest look",
)
TAILS: tuple[Tail, ...] = ("resampled", "normal", "t4", "t3")
BACK = "planted that come back"
DEVIATIONS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
AUDITS = {1: 100, 5: 40, 50: 12}  # memorized suspects -> audits at each separation
AUDITS_AT_LAB = 400
AT_LAB = "5 at the lab's separation"
MORE_CONTROLS = (20, 30, 45, 60, 90)

Groups = Mapping[str, Sequence[Item]]


def grouped(items: Sequence[Item], budgets: Sequence[int], threshold: float) -> dict[str, list[Item]]:
    """Controls, never planted, and the planted ones by what they are and whether the attack brings them back."""
    level = float(to_z(threshold))
    planted = [item for item in items if item.group == "planted"]
    back = [item for item in planted if highest(item, budgets) >= level > caption(item, budgets)]
    return {
        "control": [item for item in items if item.group == "control"],
        "never planted": [item for item in items if item.group == "never planted"],
        BACK: back,
        "verbatim, full strength": [i for i in planted if i.kind == "verbatim" and i.strength == "full"],
        "all planted": planted,
    }


def rows(items: Sequence[Item], budgets: Sequence[int]) -> np.ndarray:
    """(items, columns): z of the looks after the start, on both models, then the statistics that are simulated."""
    return np.array(
        [
            [
                *at_looks(item.looks)[1:],
                *at_looks(item.reference or [])[1:],
                *(STATISTICS[name](item, budgets) for name in SIMULATED),
            ]
            for item in items
        ],
        dtype=np.float64,
    )


def population(items: Sequence[Item], budgets: Sequence[int]) -> Population:
    """Their rows by kind."""
    kinds = sorted({item.kind for item in items})
    return Population({kind: rows([item for item in items if item.kind == kind], budgets) for kind in kinds})


def measure_separation(path: Path) -> dict[str, Any]:
    """Every statistic on one recorded audit."""
    head, items = read_items(path)
    budgets = head["settings"]["budgets"]
    groups = grouped(items, budgets, head["threshold"])
    return {
        "audit": head,
        "n": {name: len(group) for name, group in groups.items()},
        "statistics": {name: separation(statistic, groups, budgets) for name, statistic in STATISTICS.items()},
    }


def measure_false(
    groups: Groups, layout: Layout, threshold: float, audits: int, earlier: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """False positives of rules by the distribution of null suspects and controls; again after every case.

    Args:
        earlier: cases that an interrupted measurement has already.
    """
    budgets = (0, *layout.budgets)
    controls, unplanted = (population(groups[name], budgets) for name in ("control", "never planted"))
    hardest = controls.hardest(layout.column("highest look"))
    hard = Population(controls.rows, shares={hardest: 1.0})
    cases = {f"as the controls, {tail}": (tail, controls) for tail in TAILS}
    cases["as those never planted, resampled"] = ("resampled", unplanted)
    cases |= {f"all of the hardest kind, {tail}": (tail, hard) for tail in ("t4", "t3")}
    result = dict(earlier)
    for name, (tail, suspects) in cases.items():
        if name in result:
            continue
        others = SIMULATED[1:] if suspects is controls and tail == "resampled" else ()
        rules = (VERDICTS, WITHOUT, *others)
        result[name] = {
            rule: false_positives(
                rule, with_tail(controls, tail), with_tail(suspects, tail), layout, threshold=threshold, audits=audits
            )
            for rule in rules
        }
        say(f"{name}: {json.dumps(result[name])}")
        yield {"hardest kind": hardest, "cases": result}


def measure_power(
    controls: Population, memorized: Population, layout: Layout, rules: Sequence[str], threshold: float, scale: float
) -> dict[str, Any]:
    """Share found against separation.

    The memorized are the lab's that come back, as they scatter, moved along the line from the mean of the hardest kind
    of controls to theirs. The separation is that of the highest look, in standard deviations of that kind; every
    other statistic moves in proportion, so that all rules judge the same images.
    """
    column = layout.column("highest look")
    hard = controls.rows[controls.hardest(column)]
    away = memorized.rows["memorized"].mean(axis=0) - hard.mean(axis=0)
    lab = float(away[column] / hard[:, column].std(ddof=1))
    curves: dict[str, Any] = {}
    for rule in rules:
        curves[rule] = {
            str(n): [
                {"deviations": d}
                | power(rule, controls, memorized, (d / lab - 1) * away, layout,
                        n=n, threshold=threshold, audits=max(2, round(audits * scale)))
                for d in DEVIATIONS
            ]
            for n, audits in AUDITS.items()
        }  # fmt: skip
        curves[rule][AT_LAB] = power(
            rule, controls, memorized, 0.0, layout, n=5, threshold=threshold, audits=round(AUDITS_AT_LAB * scale)
        )
        say(f"{rule}: {json.dumps(curves[rule][AT_LAB])}")
    return {"lab's separation": lab, "n that come back": len(memorized.rows["memorized"]), "curves": curves}


def measure_controls(groups: Groups, layout: Layout, threshold: float, audits: int) -> dict[str, Any]:
    """What more controls would find: the verdicts' power at the lab's separation by their number."""
    controls = population(groups["control"], (0, *layout.budgets))
    memorized = Population({"memorized": rows(groups[BACK], (0, *layout.budgets))})
    return {
        str(count): power(
            VERDICTS, controls, memorized, 0.0, layout, n=5, threshold=threshold, audits=audits, count=count
        )
        for count in MORE_CONTROLS
    }


def late(groups: Groups, budgets: Sequence[int]) -> dict[str, Any]:
    """Of the images that come back at the last look, how many were at the one before no nearer than some control."""
    before = {name: [float(np.median(item.looks[-2])) for item in groups[name]] for name in ("control", BACK)}
    nearest = max(before["control"])
    return {"budget": budgets[-2], **counted(sum(value <= nearest for value in before[BACK]), len(before[BACK]))}


def of_mitigations() -> tuple[Population, Population, Layout]:
    """Controls and full-strength verbatim images under the attack of ``measure_mitigations.py`` on NeMo."""
    measured = json.loads((FIGURES / "mitigations.json").read_text())
    similarity = {role: measured[f"attack nemo {role}"]["similarity"] for role in ("control", "suspect")}
    kinds = {name: "scene" if name.startswith("scene-") else "control" for name in similarity["control"]}

    def looks(names: Sequence[str], role: str) -> np.ndarray:
        return np.repeat(to_z([similarity[role][name] for name in names])[:, None], 2, axis=1)

    controls = {
        kind: looks([name for name in kinds if kinds[name] == kind], "control") for kind in sorted(set(kinds.values()))
    }
    memorized = {"memorized": looks(list(similarity["suspect"]), "suspect")}
    layout = Layout((measured["attack"]["steps"],), ("highest look",), reference=False)
    return Population(controls), Population(memorized), layout


def draw(measured: Mapping[str, Any], path: Path) -> None:
    """The power curves: a panel for each number of memorized suspects."""
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(AUDITS), sharey=True)
    for axes, n in zip(panels, AUDITS, strict=True):
        for (rule, curves), colour in zip(measured["curves"].items(), (*PALETTE, "black"), strict=False):
            points = curves[str(n)]
            x = [point["deviations"] for point in points]
            axes.fill_between(
                x, [p["low"] for p in points], [p["high"] for p in points], color=colour, alpha=0.12, lw=0
            )
            axes.plot(x, [p["share"] for p in points], color=colour, marker="o", markersize=3, label=rule)
        axes.axvline(measured["lab's separation"], color="#888888", linewidth=1, linestyle=":")
        axes.set_title(f"{n} memorized of {SUSPECTS}", fontsize=10, loc="left")
        axes.set(xlabel=f"deviations above {CONTROLS} controls", ylim=(-0.03, 1.03))
    panels[0].set_ylabel("share found")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.savefig(path)


def main() -> None:
    """Record, or measure the parts and add them to the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audit", type=Path, help="folder of an audit to keep the similarities of")
    parser.add_argument("--records", type=Path, default=RECORDS)
    parser.add_argument("--parts", default="separation,false,power,controls,mitigations")
    parser.add_argument("--audits", type=int, default=400, help="simulated audits for each false positive rate")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of audits of the power curves")
    parser.add_argument("--json", type=Path, default=FIGURES / "evidence.json")
    given = parser.parse_args()
    if given.audit:
        record_audit(given.audit, given.records)
        return
    measured = json.loads(given.json.read_text()) if given.json.is_file() else {}
    parts = given.parts.split(",")
    if "separation" in parts:
        measured["separation"] = measure_separation(given.records)
    head, items = read_items(given.records)
    budgets, threshold = head["settings"]["budgets"], head["threshold"]
    groups, layout = grouped(items, budgets, threshold), Layout(tuple(budgets[1:]), SIMULATED)
    if "false" in parts:
        earlier = measured.get("false", {}).get("cases", {})
        for measured["false"] in measure_false(groups, layout, threshold, given.audits, earlier):
            given.json.write_text(json.dumps(measured, indent=1) + "\n")
    if "power" in parts:
        controls = population(groups["control"], budgets)
        memorized = Population({"memorized": rows(groups[BACK], budgets)})
        rules = (VERDICTS, WITHOUT, *SIMULATED[1:], RANKS)
        measured["power"] = measure_power(controls, memorized, layout, rules, threshold, given.scale)
        draw(measured["power"], given.json.with_suffix(".png"))
    if "controls" in parts:
        measured["power by controls"] = measure_controls(groups, layout, threshold, given.audits)
        measured["late"] = late(groups, budgets)
    if "mitigations" in parts:
        measured["power, more steps"] = measure_power(*of_mitigations(), (WITHOUT, RANKS), threshold, given.scale)
    given.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
