"""One audit on several models, side by side: same suspects and settings or none, paired changes, quality.

Pure functions of finished run folders; the first run is the one the others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffkit.errors import InputError
from diffkit.runs.journal import read_journal
from diffkit.runs.record import differing_keys
from memorization.auditing.aggregate import Record, aggregate, of_role
from memorization.auditing.controls import rate
from memorization.auditing.summary import SUMMARY_SCHEMA

#: What may differ between the runs of one comparison.
OWN_KEYS = ("model", "model_sha256", "lora", "mitigation", "save_triggers")


@dataclass(frozen=True)
class AuditRun:
    """A finished audit: its folder, run.json, summary.json and journal."""

    name: str
    folder: Path
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    items: Mapping[str, Record]


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
    named = list(names) if names is not None else [Path(folder).name for folder in folders]
    if len(named) != len(folders) or len(set(named)) != len(named):
        raise InputError(
            f"Expected {len(folders)} different names, got {', '.join(named)}; name the runs with --names a,b."
        )
    runs = [_read(Path(folder), name) for folder, name in zip(folders, named, strict=True)]
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
    if summary.get("schema_version") != SUMMARY_SCHEMA:
        raise InputError(
            f"{folder} has a summary of version {summary.get('schema_version')}, this diffkit compares version "
            f"{SUMMARY_SCHEMA}; audit again into a new folder."
        )
    return AuditRun(name, folder, record, summary, read_journal(folder / "journal.jsonl").items)


def refuse_different(one: AuditRun, other: AuditRun) -> None:
    """Refuse two audits that did not ask the same question.

    Raises:
        InputError: the keys of the configuration that differ, other than those that name the model.
    """
    there, here = (_common(run.record["config"]) for run in (one, other))
    differences = differing_keys(there, here)
    if differences:
        raise InputError(
            f"{one.folder} and {other.folder} are not the same audit: {'; '.join(differences)} "
            f"(there: {one.name}, here: {other.name}). Audit both with the same suspects, controls and settings."
        )


def _common(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in OWN_KEYS}


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
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


def changes(one: AuditRun, other: AuditRun) -> dict[str, Any]:
    """Paired changes from one run to another, suspect by suspect.

    ``caption``: the caption alone reaches the threshold. ``attack``: each attack does, at the smaller of the two
    pre-set budgets. ``verdict``: replicated or retained. Suspects unknown in either run (for the verdict also those
    that are inconclusive) are left out and counted.
    """
    found = {
        "caption": _paired(_by_caption(one), _by_caption(other)),
        "verdict": _paired(_verdict(one), _verdict(other)),
    }
    for rung in one.summary["rungs"]:
        budgets = [run.summary["rungs"][rung]["budget"] for run in (one, other)]
        if all(budget is not None for budget in budgets):
            budget = min(budgets)
            found[rung] = {"budget": budget, **_paired(_by_attack(one, rung, budget), _by_attack(other, rung, budget))}
    return found


Answers = dict[str, bool | None]


def _paired(before: Answers, after: Answers) -> dict[str, Any]:
    pairs = [(before[key], after.get(key)) for key in before]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return {**mcnemar([a for a, _ in known], [b for _, b in known]), "left_out": len(pairs) - len(known)}


def _verdict(run: AuditRun) -> Answers:
    back: dict[str, bool | None] = {"replicated": True, "retained": True, "not shown": False}
    return {finding["key"]: back.get(finding["verdict"]) for finding in run.summary["findings"]}


def _by_caption(run: AuditRun) -> Answers:
    threshold = run.summary["operating_point"]["threshold"]
    return {f["key"]: None if f["caption"] is None else f["caption"] >= threshold for f in run.summary["findings"]}


def _by_attack(run: AuditRun, rung: str, budget: int) -> Answers:
    threshold, budgets = run.summary["operating_point"]["threshold"], run.summary["settings"]["budgets"]
    found = aggregate(of_role(run.items, "suspect"), budgets, rung)
    return {one.key: None if one.curve is None else one.curve[budget] >= threshold for one in found}


def summarise_comparison(
    runs: Sequence[AuditRun], quality: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The comparison as JSON values.

    Args:
        runs: from :func:`read_runs`; the first is the baseline.
        quality: by name of the later runs what they cost, see :func:`memorization.quality.compare`.
    """
    return {
        "schema_version": 1,
        "baseline": runs[0].name,
        "suspects": runs[0].summary["suspects"],
        "runs": {run.name: _one(run) for run in runs},
        "changes": {run.name: changes(runs[0], run) for run in runs[1:]},
        "quality": dict(quality) if quality is not None else None,
        "gallery": [
            {"key": key, "verdicts": {run.name: _findings(run)[key]["verdict"] for run in runs}}
            for key in _findings(runs[0])
        ],
    }


def _findings(run: AuditRun) -> dict[str, Mapping[str, Any]]:
    return {finding["key"]: finding for finding in run.summary["findings"]}


def _one(run: AuditRun) -> dict[str, Any]:
    summary = run.summary
    kept = ("model", "mitigation", "verdicts", "rates", "rung", "budget", "detectors", "attack")
    known = [answer for answer in _by_caption(run).values() if answer is not None]
    return {
        **{key: summary[key] for key in kept},
        "threshold": summary["operating_point"]["threshold"],
        "caption": asdict(rate(sum(known), len(known))),
        "clusters": {key: summary["clusters"][key] for key in ("n", "verdicts", "rates")},
        "controls_flagged": summary["controls"]["flagged"],
        "controls_failure": summary["controls"]["failure"],
        "weakest_rungs": _counted(summary, lambda finding: finding["rung"]),
    }


def _counted(summary: Mapping[str, Any], of: Callable[[Mapping[str, Any]], str | None]) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in summary["findings"]:
        name = of(finding)
        if name is not None:
            found[name] = found.get(name, 0) + 1
    return found
