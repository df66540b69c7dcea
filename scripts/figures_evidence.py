"""Block of figures about evidence: how well statistics separate, false positives and power of simulated audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, read, table

BACK, FULL = "planted that come back", "verbatim, full strength"
LAB, AT_LAB = "lab's separation", "5 at the lab's separation"


def with_interval(value: Mapping[str, float | None], digits: int = 1) -> str:
    """A figure with its interval."""
    if value["value"] is None:
        return "–"
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def percent(value: Mapping[str, float]) -> str:
    """A share in per cent with its interval."""
    return f"{100 * value['share']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def separation(measured: Mapping[str, Any]) -> str:
    """The table of the statistics on the recorded audit."""
    settings, n = measured["audit"]["settings"], measured["n"]
    rows = []
    for name, row in measured["statistics"].items():
        back, full = row[BACK], row[FULL]
        top = row["never planted, highest deviations from controls"]
        rows.append(
            [
                name,
                f"{with_interval(back['control']['deviations'])}, {back['n']}",
                f"{with_interval(full['control']['deviations'])}, {full['n']}",
                with_interval(full["control"]["auc"], 2),
                f"{with_interval(full['never planted']['auc'], 2)}, {row['n']['never planted']}",
                "–" if top is None else f"{top:.1f}",
            ]
        )
    head = [
        "statistic",
        "deviations of those that come back, n",
        "of full-strength verbatim ones, n",
        "AUC against controls",
        "AUC against never planted, n",
        "most of one never planted",
    ]
    return (
        f"`lab` under the mask `lab-nemo`, {settings['budgets'][-1]} steps of DoRI from the start "
        f"`{settings['starts'][0]}`, {n['control']} controls. Deviations: predictive standard deviations above the "
        "mean of the kind of controls from which an image stands out least, the median of a group; AUC of the full-"
        "strength verbatim images; 95 % "
        "bootstrap intervals.\n\n" + table(head, rows)
    )


def false_positives(measured: Mapping[str, Any]) -> str:
    """Share of audits of null suspects with any false "retained"."""
    rules = list(next(iter(measured["cases"].values())))
    rows = [
        [
            case,
            str(next(iter(row.values()))["verdicts"]["n"]),
            *(
                f"{percent(row[rule]['verdicts'])}; {percent(row[rule]['p-values alone'])}" if rule in row else "–"
                for rule in rules
            ),
        ]
        for case, row in measured["cases"].items()
    ]
    return (
        "Simulated audits of 500 null suspects with 30 controls: per cent with any false `retained`, with the "
        "threshold; by the p-values alone. `t4`, `t3`: t distributions with the recorded mean and spread.\n\n"
        + table(["null suspects", "audits", *rules], rows)
    )


def found(measured: Mapping[str, Any], which: str) -> str:
    """What is found of five memorized among 500."""
    rows = [
        [
            rule,
            percent(curves[AT_LAB]["of those that come back"]),
            percent(curves[AT_LAB]),
            f"{curves[AT_LAB]['all found']['k']} of {curves[AT_LAB]['all found']['n']}",
        ]
        for rule, curves in measured["curves"].items()
    ]
    return (
        f"Five memorized among 500, as {which}: {measured['n that come back']} images, on average "
        f"{measured[LAB]:.1f} standard deviations above the hardest kind of controls by the highest look. Drawn anew, "
        "some of them miss the threshold, which no statistic makes up for.\n\n"
        + table(
            [
                "statistic",
                "per cent found of those that reach the threshold",
                "of all",
                "audits in which all five are found",
            ],
            rows,
        )
    )


def by_controls(measured: Mapping[str, Any]) -> str:
    """What more controls find, and how many images come back late."""
    powers = measured["power by controls"]
    rows = [
        [
            "per cent found of those that reach the threshold",
            *(percent(p["of those that come back"]) for p in powers.values()),
        ],
        ["of all", *(percent(p) for p in powers.values())],
    ]
    late = measured["late"]
    return (
        "The verdicts on the first five by the number of controls:\n\n"
        + table(["controls", *powers], rows)
        + f"\n\nThirty controls cannot tell how heavy their tails are; sixty find what thirty leave open. Of the "
        f"{late['n']} images that come back, {late['k']} were at {late['budget']} steps no nearer than some control."
    )


def evidence() -> str:
    """Statistics, false positives and power."""
    measured = read("evidence")
    if not measured:
        return MISSING
    parts = [separation(measured["separation"])] if "separation" in measured else []
    parts.append(false_positives(measured["false"]))
    parts.append(found(measured["power"], "those planted ones that the attack brings back"))
    if "power by controls" in measured:
        parts.append(by_controls(measured))
    if more := measured.get("power, more steps"):
        parts.append(found(more, "the full-strength verbatim ones after 50 steps from two starts"))
    parts.append("![Share of the memorized that is found, against separation](figures/evidence.png)")
    return "\n\n".join(parts)


BLOCKS = (evidence,)
