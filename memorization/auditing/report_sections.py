"""The report's parts beside the matched controls: the ladder, work to threshold, edited suspects, the reference."""

from __future__ import annotations

from collections.abc import Sequence

from diffkit.report import Block, Cell, Figure, Paragraph, Table
from diffkit.report.html import CellLike
from diffkit.report.plots import survival_curves
from diffkit.stats import Rate, format_interval
from memorization.auditing.aggregate import Records
from memorization.auditing.report_tables import two_decimals
from memorization.auditing.result import AuditSummary

NAMES = 50  # in a sentence


def effort_note(summary: AuditSummary) -> tuple[Block, ...]:
    """Which attacks ended early or were not begun, and what that means; nothing where all ran to their last budget."""
    stopped, settings = summary["cost"]["stopped"], summary["settings"]
    sentences = {
        "certain": "{n} attacks on suspects ended at the first look at which the verdict was certain; their similarity "
        "is the one at that look.",
        "caption": "{n} attacks were not begun, since the caption alone gives the image.",
        "triage": "{n} attacks were not begun, since the triage ({triage}) ranked the suspects too low. Of these only "
        "the captions were tried: what the detector does not see is missed.",
        "reference": "{n} attacks on the reference model ended when it drew the image.",
    }
    parts = [
        text.format(n=stopped[reason], triage=settings.get("triage"))
        for reason, text in sentences.items()
        if reason in stopped
    ]
    start, *looks = summary["attack"]
    if start["suspects"]["n"] == 0 and any(look["suspects"]["n"] for look in looks):
        parts.append(
            "Their start, budget 0, was not looked at. With a reference model a look ends once more than half of its "
            "images lie below the threshold, so that a median below it may be of fewer images."
        )
    if not parts:
        return ()
    return (Paragraph(" ".join(["Suspects are attacked up to the pre-set budget that the controls give.", *parts])),)


def rung_table(summary: AuditSummary) -> Table:
    """The ladder, from the weakest attack to the strongest."""
    rows: list[list[CellLike]] = []
    for name, rung in summary["rungs"].items():
        controls = rung["controls"]
        held = Cell("set aside", "warn", controls["failure"]) if controls["failure"] else "hold"
        rows.append([name, rung["budget"], held, rung["retained"], rung["weakest_for"]])
    headers = ["attack, weak to strong", "pre-set budget", "controls", "retained by it", "weakest that works for"]
    return Table(headers, rows, "The lower the rung that works, the easier the image is to get.")


def work_blocks(summary: AuditSummary) -> tuple[Block, ...]:
    """Kaplan-Meier curves of suspects and controls under the attack the verdicts rest on."""
    name = summary["rung"]
    work = summary["rungs"][name]["work"]
    last = max(summary["settings"]["budgets"])
    figure = survival_curves(
        {
            group: [(step["work"], step["share"], step["low"], step["high"]) for step in work[group]]
            for group in ("suspects", "controls")
            if work[group]
        },
        end=last,
    )
    groups = []
    for group in ("suspects", "controls"):
        if work[group]:
            middle, total = work["median"][group], work[group][0]["at_risk"]
            back = sum(step["back"] for step in work[group])
            half = f"half of them within {middle} steps" if middle is not None else "fewer than half of them"
            groups.append(f"{group}: {back} of {total} back by the last look, {half}")
    p = work["log_rank_p"]
    tail = "" if p is None else f" Log-rank p of the two curves: {p:.2g} (approximate)."
    text = (
        f"Share not yet back under {name}, by attack steps; {'; '.join(groups)}. Who never came back is censored at "
        f"the last look, not counted as safe.{tail}"
    )
    return (Paragraph(text), Figure.of("Share not yet back", figure))


def edit_blocks(records: Records, summary: AuditSummary) -> tuple[Block, ...]:
    """Families of edited suspects: is it this image that comes back, or whatever the attack is aimed at?"""
    rows: list[list[CellLike]] = []
    budget = summary["budget"]
    for name, family in summary["edits"].items():
        for row in family["attack"]:
            share = row["back"]
            rows.append(
                [
                    name,
                    row["budget"],
                    Cell(f"{share['count']} of {share['n']}", "warn" if share["count"] else "plain"),
                    two_decimals(row["edit_median"]),
                    two_decimals(row["auc"]),
                ]
            )
    text = (
        "The same attack aimed at edits of the suspects, which the model was not trained on. A suspect whose edits "
        "come back as easily is drawn because the attack draws it, not because it is stored. The edits of a flat "
        "picture are nearly the picture itself, so they are no controls and enter no p-value."
    )
    back = {name: family["back"] for name, family in summary["edits"].items() if family["back"]}
    if back and budget:
        named = "; ".join(f"{name}: {_ids(records, keys)}" for name, keys in back.items())
        text += f" Back at budget {budget}: {named}."
    headers = ["edit", "budget", "edits back", "median", "AUC of suspects against edits"]
    return (Paragraph(text), Table(headers, rows))


def _ids(records: Records, keys: Sequence[str]) -> str:
    """The first ids; a large audit has thousands, and results.csv has them all."""
    ids = ", ".join(records[key]["id"] for key in keys[:NAMES])
    return ids + (f" and {len(keys) - NAMES} others, see results.csv" if len(keys) > NAMES else "")


def reference_blocks(summary: AuditSummary) -> tuple[Block, ...]:
    """The suspects on the reference model; nothing without one."""
    reference, model = summary["reference"], summary["reference_model"]
    if reference is None or model is None:
        return ()
    rows: list[list[CellLike]] = [["caption alone", None, _share(reference["caption"])]]
    for name, share in reference["attack"].items():
        rows.append([name, summary["rungs"][name]["budget"], _share(share)])
    text = (
        f"Suspects that their captions or an attack bring back, on {model['model']}, with the same starts and seeds. "
        "What it draws too was not learned from the suspects, so there the verdict is inconclusive."
    )
    return (Paragraph(text), Table(["way", "budget", "suspects drawn by the reference"], rows))


def _share(share: Rate) -> Cell:
    if share["interval"] is None:
        return Cell("–", "muted", format_interval(share))
    return Cell(f"{share['count']} of {share['n']}", "warn" if share["count"] else "plain", format_interval(share))
