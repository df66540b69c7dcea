"""The audit's report: verdicts with their pictures, controls, the copy detector, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffkit.report import Block, Cell, Facts, Figure, Notes, Paragraph, Section, Stat, Table, Tone, write_report
from diffkit.report.html import CellLike
from diffkit.report.plots import LINES, budget_curves, histogram
from diffkit.runs import Run
from diffkit.stats import Rate, format_interval
from memorization.auditing.aggregate import Records, detector_values, of_role, scores
from memorization.auditing.report_evidence import evidence_blocks
from memorization.auditing.report_pages import (
    control_note,
    line_blocks,
    page_groups,
    page_links,
    shown_blocks,
    write_pages,
)
from memorization.auditing.report_rows import choose_rows
from memorization.auditing.report_sections import edit_blocks, effort_note, reference_blocks, rung_table, work_blocks
from memorization.auditing.report_tables import TONES, control_table, embedded, suspect_table, two_decimals
from memorization.auditing.result import AuditSummary, RungSummary
from memorization.auditing.results_table import write_results
from memorization.copies import OperatingPoint
from memorization.items import Role

MEANING = {
    "replicated": "The caption alone gives the image: the median similarity over the seeds reaches the threshold.",
    "retained": "The caption does not, but an attack at the pre-set budget does, and the controls do not.",
    "not shown": "Neither did, at this budget. A stronger attack may still bring the image back.",
    "not attacked": "The caption does not give the image, an attack might: the triage ranked it too low for one.",
    "inconclusive": "The controls are too few, come back, or do not set this suspect apart; the reference model "
    "draws it too; or no copy could be seen.",
    "could not be scored": "No image to compare with, or its scoring failed; counted in every total.",
}


def write_page(run: Run, records: Records, summary: AuditSummary) -> Path:
    """Write report.html of a finished audit, and results.csv; of a large audit also its pages in `report/`.

    Args:
        run: the open run.
        records: journal records by key, in the order of the items.
        summary: the content of summary.json.
    """
    title = f"Memorization audit of {audited(summary)}"
    results = [path.name for path in write_results(run, records, summary)]
    rows = choose_rows(records, summary, _unscored(records, summary))
    groups = page_groups(rows, records, summary)
    write_pages(run, title, groups, rows, records, summary)
    show = embedded(run.folder)
    suspects = suspect_table(rows.shown_findings, records, summary, show)
    controls = control_table(rows.shown_controls, records, summary, show)
    sections: list[Section | Block] = [
        Section("Suspects", (*shown_blocks(rows, results), suspects)),
        Section("Suspects against controls", _comparison(records, summary)),
        Section("Evidence", evidence_blocks(records, summary)),
        Section("Work until an image is back", work_blocks(summary)),
        *([Section("Edited suspects", edit_blocks(records, summary))] if summary["edits"] else []),
        *([Section("Reference model", reference_blocks(summary))] if summary["reference"] else []),
        Section("Controls", (*control_note(rows, summary), controls), folded=True),
        Section("Copy detector", (_operating_point(summary["operating_point"]),)),
        Section("What could not be scored", line_blocks(rows)),
        Section("Assumptions and limits", (Notes(_limits(summary)),)),
        *([Section("All rows", page_links(groups, results), folded=True)] if groups else []),
    ]
    return write_report(run, title=title, summary=_stats(summary), sections=sections)


def audited(summary: AuditSummary) -> str:
    """The audited model in words."""
    lora = summary.get("lora")
    return str(summary["model"]) if lora is None else f"{summary['model']} with the LoRA {lora['name']}"


def _stats(summary: AuditSummary) -> list[Stat]:
    stats = [
        Stat(verdict, f"{count} of {summary['suspects']}", _share(summary["rates"][verdict]), TONES[verdict])
        for verdict, count in summary["verdicts"].items()
    ]
    clusters = summary["clusters"]
    if clusters["n"] < summary["suspects"]:
        back = clusters["verdicts"]["replicated"] + clusters["verdicts"]["retained"]
        detail = f"{back} of them replicated or retained; near-duplicates have one vote"
        stats.append(Stat("different images", str(clusters["n"]), detail))
    controls = summary["controls"]
    flagged = controls["flagged"]
    tone: Tone = "warn" if controls["failure"] or flagged["count"] else "good"
    stats.append(Stat("controls flagged", f"{flagged['count']} of {flagged['n']}", _share(flagged), tone))
    return stats


def _share(rate: Rate) -> str:
    share = "" if rate["share"] is None else f"{rate['share']:.0%}, 95 % interval "
    return share + format_interval(rate)


def _comparison(records: Records, summary: AuditSummary) -> tuple[Block, ...]:
    blocks: list[Block] = list(effort_note(summary))
    if len(summary["rungs"]) > 1:
        blocks.append(rung_table(summary))
    for name, rung in summary["rungs"].items():
        blocks += _rung(name, rung, records, summary)
    for name, detector in summary["detectors"].items():
        if detector["auc"] is not None:
            values = {f"{role}s": detector_values(of_role(records, role), name) for role in ("suspect", "control")}
            plot = histogram(values, xlabel=name.replace("_", " "))
            caption = f"Without any image or attack: AUC of suspects against controls {detector['auc']:.2f}."
            blocks.append(Figure.of(f"Detector: {name.replace('_', ' ')}", plot, caption))
    return tuple(blocks)


def _rung(name: str, rung: RungSummary, records: Records, summary: AuditSummary) -> list[Block]:
    """One attack: what its controls allow, the curves, the table."""
    settings, controls = summary["settings"], rung["controls"]
    budgets, threshold = settings["budgets"], summary["operating_point"]["threshold"]
    curves: dict[Role, list[list[float | None]]] = {"suspect": [], "control": []}
    for role, group in curves.items():
        for key, record in of_role(records, role).items():
            curve = scores(key, record, budgets, name).curve
            if curve is not None:
                group.append([curve.get(budget) for budget in budgets])
    figure = budget_curves(budgets, curves["suspect"], curves["control"], threshold=threshold)
    text = f"The pre-set budget of {name} is {rung['budget']} steps: the largest at which at most "
    text += f"{settings['alpha']:.0%} of the controls come back." if rung["budget"] else ""
    if controls["failure"]:
        text = f"No verdict rests on {name}: {controls['failure']}."
    text += f" With {controls['n']} controls the smallest possible p is {controls['smallest_p']:.3f}."
    many = any(len(group) > LINES for group in curves.values())
    caption = f"Of more than {LINES} images, the {LINES // 4} that come nearest are drawn." if many else ""
    return [Paragraph(text), Figure.of(f"Similarity under the attack {name}", figure, caption), _budget_table(rung)]


def _budget_table(rung: RungSummary) -> Table:
    rows: list[list[CellLike]] = []
    for row in rung["attack"]:
        groups = [row["suspects"], row["controls"]]
        shares = [None if g is None else Cell(f"{g['count']} of {g['n']}", detail=_share(g)) for g in groups]
        medians = [two_decimals(row["suspect_median"]), two_decimals(row["control_median"])]
        rows.append([row["budget"], *shares, *medians, two_decimals(row["auc"])])
    return Table(["budget", "suspects back", "controls back", "suspect median", "control median", "AUC"], rows)


def _operating_point(point: OperatingPoint) -> Facts:
    facts: dict[str, object] = {name: point[name] for name in ("detector", "preprocessing", "threshold", "source")}
    if "tpr" in point:
        low, high = point["tpr_interval"]
        facts["copies found"] = f"{point['tpr']:.1%} of {point['copies']} ({low:.1%} to {high:.1%})"
        low, high = point["fpr_interval"]
        facts["non-copies flagged"] = f"{point['fpr']:.2%} of {point['non_copies']} ({low:.2%} to {high:.2%})"
        facts["copies found at 1 % false alarms"] = f"{point['tpr_at_1_fpr']:.1%}"
        facts["AUC"] = f"{point['auc']:.4f}"
        facts["by way of copying"] = ", ".join(f"{way} {share:.0%}" for way, share in point["by_distortion"].items())
    return Facts(facts)


def _unscored(records: Records, summary: AuditSummary) -> list[str]:
    lines = [f"{row['source']}, row {row['row']}: {row['reason']}" for row in summary["unreadable"]]
    lines += [f"{key}: {record['reason']}" for key, record in records.items() if record["reason"]]
    lines += [f"{key}, mask: {record['mask']}" for key, record in records.items() if record["mask"]]
    for key, tokens in summary.get("truncated", {}).items():
        beyond = ", ".join(f"{count} tokens of {name}" for name, count in tokens.items())
        lines.append(f"{key}: the caption is longer than a text encoder reads; the last {beyond} do not count")
    for name, detector in summary["detectors"].items():
        lines += [f"{name}: {reason}" for reason in detector["reasons"]]
    return lines


def _limits(summary: AuditSummary) -> Sequence[str]:
    settings = summary["settings"]
    return [
        *(f"{verdict.capitalize()}: {meaning}" for verdict, meaning in MEANING.items()),
        "No verdict means that an image is not in the model, and none is legal advice: each says what these attacks "
        "showed at this budget.",
        "The controls are taken to be images the model has not seen, alike in kind to the suspects. If they are easier "
        "or harder to draw than the suspects, the p-values say less than they seem to.",
        "The pre-set budget is chosen on the same controls that give the p-values.",
        f"The attack starts at: {', '.join(settings['starts'])}; the best start counts, suspects and controls alike."
        " DoRI moves the text encoder's output, which no user of a hosted model can do.",
        "Where a suspect has several images, the attack aims at the first and the similarity is to the closest.",
        "The copy detector compares whole pictures; it does not see mirrored or turned copies, and of a template only "
        "what is common to the whole picture.",
    ]
