"""Paired comparison of audits of several models, which must have the same suspects and settings.

Pure functions of finished run folders; the others are compared with the first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from diffkit.console import say
from diffkit.errors import InputError
from diffkit.runs.identity import completed_config, differing_keys
from diffkit.runs.journal import read_journal
from memorization.auditing.aggregate import aggregate, of_role
from memorization.auditing.controls import up_to
from memorization.auditing.result import AuditRecord, AuditSummary, SuspectResult, judged_records, read_records
from memorization.auditing.summary import SUMMARY_SCHEMA
from memorization.auditing.verification import AuditFiles
from memorization.auditing.verify_figures import recomputed_summary
from memorization.comparison.result import ComparedRun, Comparison, McNemar, PairedChange
from memorization.items import KINDS
from memorization.quality.result import QualityReport

#: What may differ between the runs of one comparison.
OWN_KEYS = ("variant", "model_config", "model", "model_sha256", "lora", "mitigation", "save_triggers")


@dataclass(frozen=True)
class AuditRun:
    """A finished audit: its folder, run.json, summary.json and journal."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    summary: AuditSummary
    items: Mapping[str, AuditRecord]


def read_runs(folders: Sequence[str | Path], names: Sequence[str] | None = None) -> list[AuditRun]:
    """Read finished audits that may be compared.

    Args:
        folders: two or more.
        names: for the report; by default the folders' names.

    Raises:
        InputError: fewer than two, names that are not as many or not different, a folder without a finished audit,
            or audits of other suspects or settings (the message names the keys).
    """
    if len(folders) < 2:
        raise InputError("A comparison needs at least two audits: diffkit audit compare RUN RUN ...")
    labels = list(names) if names is not None else [Path(folder).name for folder in folders]
    if len(labels) != len(folders) or len(set(labels)) != len(labels):
        raise InputError(
            f"Expected {len(folders)} different names, got {', '.join(labels)}; name the runs with --names a,b."
        )
    runs = [_read(Path(folder), name) for folder, name in zip(folders, labels, strict=True)]
    for run in runs[1:]:
        refuse_different(runs[0], run)
    return runs


def _read(folder: Path, name: str) -> AuditRun:
    try:
        record, summary = (json.loads((folder / file).read_bytes()) for file in ("run.json", "summary.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no finished audit ({error}); finish it with diffkit audit.") from error
    if record.get("kind") != "audit" or record.get("finished") is None:
        raise InputError(f"{folder} holds no finished audit; finish it with diffkit audit --out {folder}.")
    records = read_records(read_journal(folder / "journal.jsonl").items)
    version = summary.get("schema_version")
    if not isinstance(version, int) or version > SUMMARY_SCHEMA:
        raise InputError(f"{folder} has a summary of version {version}, this diffkit knows {SUMMARY_SCHEMA}: upgrade.")
    if version < SUMMARY_SCHEMA:
        say(f"{name}: its verdicts are those of an earlier diffkit; they are taken anew from its journal.")
        summary |= recomputed_summary(AuditFiles(folder, record, summary, records))
    return AuditRun(name, folder, record, summary, judged_records(records, summary))


def refuse_different(baseline: AuditRun, other: AuditRun) -> None:
    """Refuse two audits with different suspects, controls or settings.

    Raises:
        InputError: the keys of the configuration that differ, other than those that name the model.
    """
    records = (baseline.record, other.record)
    kinds = next((record["config"][KINDS] for record in records if KINDS in record["config"]), None)
    differences = differing_keys(*(_common(record, kinds) for record in records))
    if differences:
        raise InputError(
            f"{baseline.folder} and {other.folder} are not the same audit: {'; '.join(differences)} "
            f"(there: {baseline.name}, here: {other.name}). Audit both with the same suspects, controls and settings."
        )


def _common(record: Mapping[str, Any], kinds: str | None) -> dict[str, Any]:
    """The configuration without what may differ; version 0.1.0 noted the dtype beside it, and no kinds."""
    config = completed_config(record, {"dtype": "float32", KINDS: kinds})
    return {key: value for key, value in config.items() if key not in OWN_KEYS}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Exact McNemar test of a paired change: are those that changed one way more than those that changed the other?

    Under the null hypothesis each that changed did so either way with probability 1/2 (two-sided binomial).

    Args:
        before: one value per image; ``after``: the same images, in the same order.

    Returns:
        n, before, after (counts), only_before, only_after, and p (1 when nothing changed, None without images).

    Raises:
        InputError: not equally many.
    """
    from scipy.stats import binom

    if len(before) != len(after):
        raise InputError(f"A paired test needs pairs, got {len(before)} and {len(after)} values.")
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    gained = sum(b and not a for a, b in zip(before, after, strict=True))
    p = min(1.0, 2 * float(binom.cdf(min(lost, gained), lost + gained, 0.5))) if before else None
    return {
        "n": len(before),
        "before": sum(before),
        "after": sum(after),
        "only_before": lost,
        "only_after": gained,
        "p": p,
    }


def changes(baseline: AuditRun, other: AuditRun) -> dict[str, PairedChange]:
    """Paired changes from one run to another, suspect by suspect.

    ``caption``: the caption alone reaches the threshold. ``attack``: each attack does, up to the smaller of the two
    pre-set budgets, or was not needed, since the caption alone does. ``verdict``: replicated or retained. Suspects
    unknown in either run (for the verdict also those that are inconclusive) are left out and counted.
    """
    by_way = {
        "caption": _paired(_by_caption(baseline), _by_caption(other)),
        "verdict": _paired(_verdict(baseline), _verdict(other)),
    }
    for rung, results in baseline.summary["rungs"].items():
        budgets = (results["budget"], other.summary["rungs"][rung]["budget"])
        if budgets[0] is not None and budgets[1] is not None:
            budget = min(budgets[0], budgets[1])
            change = _paired(_by_attack(baseline, rung, budget), _by_attack(other, rung, budget))
            by_way[rung] = {"budget": budget, **change}
    return by_way


Answers = dict[str, bool | None]


def _paired(before: Answers, after: Answers) -> PairedChange:
    pairs = [(before[key], after.get(key)) for key in before]
    scored = [(a, b) for a, b in pairs if a is not None and b is not None]
    test = mcnemar([a for a, _ in scored], [b for _, b in scored])
    return cast("PairedChange", {**test, "left_out": len(pairs) - len(scored)})


def _verdict(run: AuditRun) -> Answers:
    back: dict[str, bool | None] = {"replicated": True, "retained": True, "not shown": False}
    return {finding["key"]: back.get(finding["verdict"]) for finding in run.summary["findings"]}


def _by_caption(run: AuditRun) -> Answers:
    threshold = run.summary["operating_point"]["threshold"]
    return {f["key"]: None if f["caption"] is None else f["caption"] >= threshold for f in run.summary["findings"]}


def _by_attack(run: AuditRun, rung: str, budget: int) -> Answers:
    threshold, budgets = run.summary["operating_point"]["threshold"], run.summary["settings"]["budgets"]
    items = aggregate(of_role(run.items, "suspect"), budgets, rung)
    similarities = up_to(items, budget)
    by_attack = {key: similarity >= threshold for key, similarity in similarities.items()}
    return {item.key: item.skipped == "caption" or by_attack.get(item.key) for item in items}


def summarise_comparison(runs: Sequence[AuditRun], quality: Mapping[str, QualityReport] | None = None) -> Comparison:
    """The comparison as JSON values.

    Args:
        runs: from :func:`read_runs`; the first is the baseline.
        quality: by name of the later runs what they cost, see :func:`memorization.quality.compare_snapshots`.
    """
    findings = {run.name: _findings(run) for run in runs}
    return {
        "schema_version": 1,
        "baseline": runs[0].name,
        "suspects": runs[0].summary["suspects"],
        "runs": {run.name: _compared(run) for run in runs},
        "changes": {run.name: changes(runs[0], run) for run in runs[1:]},
        "quality": dict(quality) if quality is not None else None,
        "gallery": [
            {"key": key, "verdicts": {run.name: findings[run.name][key]["verdict"] for run in runs}}
            for key in findings[runs[0].name]
        ],
    }


def _findings(run: AuditRun) -> dict[str, SuspectResult]:
    return {finding["key"]: finding for finding in run.summary["findings"]}


def _compared(run: AuditRun) -> ComparedRun:
    summary = run.summary
    clusters = summary["clusters"]
    return {
        "model": summary["model"],
        "mitigation": summary["mitigation"],
        "verdicts": summary["verdicts"],
        "rates": summary["rates"],
        "rung": summary["rung"],
        "budget": summary["budget"],
        "detectors": summary["detectors"],
        "attack": summary["attack"],
        "threshold": summary["operating_point"]["threshold"],
        "caption": summary["aggregation"]["median"]["suspects"]["caption"],
        "clusters": {"n": clusters["n"], "verdicts": clusters["verdicts"], "rates": clusters["rates"]},
        "controls_flagged": summary["controls"]["flagged"],
        "controls_failure": summary["controls"]["failure"],
        "weakest_rungs": dict(Counter(f["rung"] for f in summary["findings"] if f["rung"] is not None)),
    }
