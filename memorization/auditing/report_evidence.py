"""The report's part on evidence: the controls' distribution with its fit, and where the suspects lie in it."""

from __future__ import annotations

from diffkit.report import Block, Figure, Paragraph, Table
from diffkit.report.html import CellLike
from diffkit.report.plots import null_distributions, quantiles
from memorization.auditing.aggregate import Records, scores_of_rung
from memorization.auditing.controls import by_kind, up_to
from memorization.auditing.evidence import FEWEST, to_z
from memorization.auditing.p_values import Null, PowerSummary, as_z, differences
from memorization.auditing.result import AuditSummary

MOST_ROWS = 50  # suspects in the table of p-values

ASSUMED = {
    "t": "a t distribution, averaged over its degrees of freedom from 2 up as far as the controls leave them possible",
    "pareto": "a Pareto tail above their largest fifth, since normality was rejected",
}
DIFFERENCE = (
    "A suspect is judged by how much nearer the attack comes on this model than on the reference model. Only suspects "
    "that reach the threshold here, and not there, are tested; the others count in the correction as not significant. "
)
AXES = {
    "similarity": "z = atanh(similarity)",
    "difference": "z less that on the reference model",
}


def evidence_blocks(records: Records, summary: AuditSummary) -> tuple[Block, ...]:
    """Figures, p-values and assumptions of the attack that the verdicts rest on."""
    name, budgets = summary["rung"], summary["settings"]["budgets"]
    budget, text = summary["rungs"][name]["budget"], _power(summary["rungs"][name]["power"])
    rung = scores_of_rung(records, budgets, name)
    null = rung.null(budget, replicated=_by_their_captions(summary))
    if budget is None or not null.tails:
        why = "There is no pre-set budget." if budget is None else "There are too few controls to fit a tail to."
        return (Paragraph(f"{why} {text}"),)
    differs = null.statistic == "difference"
    suspects, controls = (
        differences(items, other or {}, budget) if differs else as_z(up_to(items, budget))
        for items, other in ((rung.suspects, rung.reference), (rung.controls, rung.reference_controls))
    )
    verdicts = {finding["key"]: finding["rungs"].get(name, finding)["verdict"] for finding in summary["findings"]}
    figure = null_distributions(
        by_kind(controls, rung.controls) if len(null.tails) > 1 else {next(iter(null.tails)): [*controls.values()]},
        {kind: fit.density() for kind, fit in null.tails.items()},
        {
            "suspects, retained": [z for key, z in suspects.items() if verdicts[key] == "retained"],
            "suspects, others": [z for key, z in suspects.items() if verdicts[key] != "retained"],
        },
        threshold=None if differs else float(to_z(summary["operating_point"]["threshold"])),
        xlabel=f"{AXES[null.statistic]}, {name} up to {budget} steps",
    )
    fits = {kind: fit.quantiles() for kind, fit in null.tails.items()}
    check = quantiles(fits, xlabel="expected of the controls", ylabel="observed")
    return (
        Paragraph(f"{_assumed(null)} {text}"),
        Figure.of("Controls, their fit, and the suspects", figure),
        Figure.of("Do the controls follow the fit?", check),
        _table(summary),
    )


def _by_their_captions(summary: AuditSummary) -> set[str]:
    """Suspects that their captions replicate; they have no part in the null."""
    threshold, alpha = summary["operating_point"]["threshold"], summary["settings"]["alpha"]
    return {
        finding["key"]
        for finding in summary["findings"]
        if finding["caption"] is not None
        and finding["caption"] >= threshold
        and (finding["caption_q"] is None or finding["caption_q"] <= alpha)
    }


def _power(power: PowerSummary) -> str:
    if power["deviations"] is None:
        return ""
    return (
        f"With {power['controls']} controls, a single memorized image among {power['tests']} tested is called if "
        f"it lies {power['deviations']:.1f} of their standard deviations above their mean and reaches the threshold; "
        f"by rank alone that would take {power['by_rank']} controls."
    )


def _assumed(null: Null) -> str:
    """In plain words what the p-values rest on."""
    parts = [f"{kind} (n = {fit.n}): {ASSUMED[fit.family]}" for kind, fit in null.tails.items()]
    differs = null.statistic == "difference"
    kinds = "the largest over their kinds" + (", where these differ" if differs else "")
    text = DIFFERENCE if differs else ""
    text += (
        "A p-value is the probability that an image which is not memorized comes as far out as this one. By rank it "
        "needs no assumption and cannot be below 1 / (1 + controls). By the tail it is read from a distribution fitted "
        f"to the controls, {kinds}; assumed are, on the scale z = atanh(similarity), {'; '.join(parts)}. It is never "
        "given below 1e-6."
    )
    left = len(null.controls) - sum(fit.n for fit in null.tails.values())
    if left:
        text += f" {left} controls of kinds with fewer than {FEWEST} count by rank only."
    if null.bulk is not None:
        text += (
            f" The {null.bulk.n} suspects have a null of their own, since an estimated {null.share or 0:.0%} of them "
            f"are not memorized: a t distribution of {null.bulk.freedom:.0f} degrees of freedom, fitted to their lower "
            "side and assumed to be symmetric. The larger of the two p-values decides."
        )
    return text


def _table(summary: AuditSummary) -> Table:
    """p-values of the suspects, the smallest first."""
    tested = [finding for finding in summary["findings"] if finding["p"] is not None]
    tested.sort(key=lambda finding: (finding["q"] if finding["q"] is not None else 1.0, finding["key"]))
    rows: list[list[CellLike]] = []
    for finding in tested[:MOST_ROWS]:
        values = (finding["p"], finding["tail_p"], finding["bulk_p"], finding["q"])
        texts = (None if value is None else f"{value:.2g}" for value in values)
        rows.append([finding["key"].removeprefix("suspect:"), finding["verdict"], *texts, finding["evidence"]])
    headers = ["suspect", "verdict", "p by rank", "p by tail", "p by bulk", "corrected", "decided"]
    left = len(tested) - len(rows)
    return Table(headers, rows, f"{left} more stand in summary.json." if left else "")
