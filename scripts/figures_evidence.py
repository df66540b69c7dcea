"""Block of figures about evidence: how well statistics separate, false positives and power of simulated audits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from figures_common import MISSING, read, table

BACK, FULL = "verbatim that come back", "verbatim, full strength"
LAB = "lab's separation"


def with_interval(value: Mapping[str, float | None], digits: int = 1) -> str:
    """A figure with its interval."""
    if value["value"] is None:
        return "–"
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"


def percent(value: Mapping[str, float]) -> str:
    """A share in per cent with its interval."""
    return f"{100 * value['share']:.1f} ({100 * value['low']:.1f} to {100 * value['high']:.1f})"


def separation(measured: Mapping[str, Any]) -> str:
    """The table of the statistics on one recorded audit."""
    settings, n = measured["audit"]["settings"], measured["n"]
    group = BACK if n[BACK] >= 5 else FULL
    rows = []
    for name, row in measured["statistics"].items():
        if not row[group]["n"]:
            continue
        control, unplanted = row[group]["control"], row[group]["never planted"]
        top = row["never planted, highest deviations from controls"]
        rows.append(
            [
                name,
                with_interval(control["deviations"]),
                with_interval(control["auc"], 2),
                f"{with_interval(unplanted['auc'], 2)}, {row['n']['never planted']}",
                "–" if top is None else f"{top:.1f}",
            ]
        )
    head = [
        "statistic",
        "deviations from the hardest kind of controls, median",
        "AUC against controls",
        "AUC against those never planted, n",
        "most deviations of one never planted",
    ]
    text = (
        f"Attack from the start `{settings['starts'][0]}`, {settings['budgets'][-1]} steps, on `lab` after NeMo: "
        f"{n[group]} planted ({group}), {n['control']} controls, {n['never planted']} never planted.\n\n"
    )
    return text + table(head, rows)


def false_positives(measured: Mapping[str, Any]) -> str:
    """Share of audits of null suspects with any false "retained"."""
    rules = {name: None for case in measured["cases"].values() for name in case}
    rows = [
        [
            case,
            *(
                f"{percent(row[rule]['verdicts'])}; {percent(row[rule]['p-values alone'])}" if rule in row else "–"
                for rule in rules
            ),
        ]
        for case, row in measured["cases"].items()
    ]
    return table(["null suspects", *rules], rows)


def evidence() -> str:
    """Statistics, false positives and power."""
    measured = read("evidence")
    if not measured:
        return MISSING
    parts = [separation(audit) for audit in measured.get("separation", [])]
    if false := measured.get("false"):
        parts.append(
            f"Per cent of {false['audits']} audits (30 controls, 500 null suspects) with any false `retained`: "
            "with the threshold; by the p-values alone.\n\n" + false_positives(false)
        )
    if power := measured.get("power"):
        rows = []
        for rule, curves in power["curves"].items():
            at = curves["5 at the lab's separation"]
            rows.append([rule, percent(at), f"{at['all found']['k']} of {at['all found']['n']}"])
        parts.append(
            "Five memorized among 500, as the lab's that come back "
            f"({power['n that come back']} images, {power[LAB]:.1f} deviations of the hardest kind):\n\n"
            + table(["statistic", "per cent found", "audits in which all five are found"], rows)
        )
        parts.append("![Share found against separation](figures/evidence.png)")
    return "\n\n".join(parts)


BLOCKS = (evidence,)
