"""results.csv and results.parquet of an audit: a row for each item, and for each row in error or left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, cast, get_args, get_origin, get_type_hints

from diffkit.report.tabular import Column, Kind, Value, csv_text, parquet_bytes
from diffkit.runs import Run
from diffkit.runs.files import write_bytes_atomically
from memorization.auditing.aggregate import Records, last_look, scores
from memorization.auditing.controls import up_to
from memorization.auditing.result import AuditRecord, AuditSummary, SuspectResult, repeated_controls_of

#: Columns of the journal's record, in their order.
IDENTITY = ("key", "role", "id", "caption", "kind", "edit", "of")
#: Names in the table of fields of a finding that would be unclear beside the caption itself.
RENAMED = {
    "caption": "caption_similarity",
    "caption_max": "caption_similarity_max",
    "similarity": "attack_similarity",
    "reference_caption": "reference_caption_similarity",
}
PICTURES = ("original", "caption", "attack", "mask")
LAST = (
    Column("attack_similarity_max", "number"), Column("reference_attack_similarity", "number"),
    Column("flagged", "flag"), Column("near_duplicates", "count"), Column("mask_reason"), Column("source"),
    Column("row", "count"),
)  # fmt: skip


def write_results(run: Run, records: Records, summary: AuditSummary) -> tuple[Path, ...]:
    """Write results.csv, and results.parquet where pyarrow is installed.

    Texts of the CSV that begin like a formula have an apostrophe before them; keys never do.

    Args:
        run: the open run.
        records: journal records by key, in the order of the items.
        summary: the content of summary.json.

    Returns:
        The files that were written.
    """
    columns = results_columns(summary)
    written = [run.write_text("results.csv", csv_text(columns, results_rows(records, summary)))]
    parquet = parquet_bytes(columns, results_rows(records, summary))
    if parquet is None:
        run.remove("results.parquet")  # of a session that had pyarrow
    else:
        written.append(run.path("results.parquet"))
        write_bytes_atomically(written[-1], parquet)
    return tuple(written)


def results_columns(summary: AuditSummary) -> list[Column]:
    """The columns: what the item is, its finding, similarities by each attack and budget, detectors, pictures."""
    return [
        *(Column(name) for name in IDENTITY),
        *(Column(RENAMED.get(name, name), kind) for name, kind in _finding_fields().items()),
        *LAST,
        *(Column(name, "number") for name in _curve_columns(summary)),
        *(Column(f"detector:{name}", "number") for name in summary["settings"]["detectors"]),
        Column("detector_reasons"),
        *(Column(f"image_{name}") for name in PICTURES),
    ]


def _finding_fields() -> dict[str, Kind]:
    """The fields of :class:`SuspectResult` that are single values, those of the record left out."""
    kinds = {name: _kind(hint) for name, hint in get_type_hints(SuspectResult).items()}
    return {name: kind for name, kind in kinds.items() if kind and (name in RENAMED or name not in IDENTITY)}


def _kind(hint: object) -> Kind | None:
    """The kind of column for values of a type, which may be None beside; no kind for lists and mappings."""
    parts = {hint} if get_origin(hint) is Literal or not get_args(hint) else set(get_args(hint)) - {type(None)}
    if all(part is str or get_origin(part) is Literal for part in parts):
        return "text"
    if parts <= {bool}:
        return "flag"
    return "count" if parts <= {int} else "number" if parts <= {int, float} else None


def _curve_columns(summary: AuditSummary) -> dict[str, tuple[str, int]]:
    """Column -> attack and budget."""
    budgets = summary["settings"]["budgets"]
    return {f"{rung}@{budget}": (rung, budget) for rung in summary["rungs"] for budget in budgets}


def results_rows(records: Records, summary: AuditSummary) -> Iterator[list[Value]]:
    """The values of :func:`results_columns`: items in their order, then rows that could not be read or that repeat."""
    names = [column.name for column in results_columns(summary)]
    findings = {finding["key"]: finding for finding in summary["findings"]}
    flagged, labels = set(summary["controls"]["flagged_keys"]), summary["clusters"]["labels"]
    for key, record in records.items():
        values = _measured(key, record, summary)
        if key in findings:
            values |= _of_finding(findings[key])
        if record["role"] == "control":
            values["flagged"] = key in flagged
        values["near_duplicates"] = labels.get(key)
        yield [values.get(name) for name in names]
    for error in summary["unreadable"]:
        unread: dict[str, Value] = {"role": error["of"].removesuffix("s"), "verdict": "could not be scored"}
        unread |= {"reason": error["reason"], "source": error["source"], "row": error["row"]}
        yield [unread.get(name) for name in names]
    for key, first in repeated_controls_of(summary).items():
        repeated = {"key": key, "role": "control", "id": key.removeprefix("control:")}
        repeated |= {"reason": f"left out: it shows the picture of {first}"}
        yield [repeated.get(name) for name in names]


def _measured(key: str, record: AuditRecord, summary: AuditSummary) -> dict[str, Value]:
    """What stands in the record of any item; the similarity under attack is that of the deciding one."""
    budgets, rung, budget = summary["settings"]["budgets"], summary["rung"], summary["budget"]
    by_rung = {name: scores(key, record, budgets, name) for name in summary["rungs"]}
    curves: dict[str, Mapping[int, float]] = {name: by_rung[name].curve or {} for name in by_rung}
    seeds = record["caption"] or []
    look = last_look(record, rung, budget)
    pictures = record["pictures"] | {"attack": record["pictures"].get(f"{rung}-{look}")}
    reached = up_to([by_rung[rung]], budget).get(key)
    highest = None if look is None or budget is None else record["best"][rung][look]["similarity"]
    detectors = record["detectors"].items()
    return {
        **{name: cast("Mapping[str, Value]", record).get(name) for name in (*IDENTITY, "reason")},
        "key": key,
        "caption": record["prompt"],
        "budget": budget,
        "caption_similarity": by_rung[rung].caption,
        "caption_similarity_max": max(seeds, default=None),
        "seeds": len(seeds),
        "attack_similarity": reached,
        "attack_similarity_max": highest,
        **{name: curves[rung].get(budget) for name, (rung, budget) in _curve_columns(summary).items()},
        **{f"detector:{name}": score["value"] for name, score in detectors},
        "detector_reasons": "; ".join(f"{name}: {score['reason']}" for name, score in detectors if score["reason"]),
        "mask_reason": record["mask"],
        **{f"image_{name}": pictures.get(name) for name in PICTURES},
    }


def _of_finding(finding: SuspectResult) -> dict[str, Value]:
    fields = cast("Mapping[str, Value]", finding)
    values = {RENAMED.get(name, name): fields.get(name) for name in _finding_fields()}
    decisive = (finding["budget"], finding["similarity"])
    for rung in finding["rungs"].values():
        if finding["budget"] is not None and (rung["budget"], rung["similarity"]) == decisive:
            values["attack_similarity_max"] = rung["similarity_max"]
            values["reference_attack_similarity"] = rung["reference"]
    return values
