"""From the journal of a locality study to its figures: each with its nulls and intervals over images.

Pure: JSON values in, JSON values out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from memorization.items import AuditItem
from memorization.locality.bootstrap import within
from memorization.locality.null_comparison import Record, compared_groups, to_json
from memorization.locality.settings import LocalitySettings


def memorized(records: Mapping[str, Record], items: Sequence[AuditItem], settings: LocalitySettings) -> list[AuditItem]:
    """The suspects that enough starts brought back: only these have triggers to compare."""
    scored = [item for item in items if item.role == "suspect" and records[item.key]["reason"] is None]
    return [item for item in scored if sum(records[item.key]["success"]) >= settings.reached * settings.starts]


def summarise_locality(
    records: Mapping[str, Record],
    items: Sequence[AuditItem],
    settings: LocalitySettings,
    *,
    threshold: float,
    starts_apart: float,
) -> dict[str, Any]:
    """The content of summary.json.

    Args:
        records: the journal, by key.
        items: suspects and controls.
        settings: of the study.
        threshold: similarity from which an image counts as given.
        starts_apart: distance of two starts in closed form, see :func:`.embeddings.gaussian_distance`.
    """
    reproduced = memorized(records, items, settings)
    scored = [item for item in items if records[item.key]["reason"] is None]
    controls = [item for item in scored if item.role == "control"]
    groups = {key.removeprefix("group:"): record for key, record in records.items() if key.startswith("group:")}
    summary: dict[str, Any] = {
        "settings": settings.to_json(),
        "threshold": threshold,
        "images": {
            "suspects": sum(item.role == "suspect" for item in items),
            "memorized": len(reproduced),
            "controls": len(controls),
            "unscored": {item.key: records[item.key]["reason"] for item in items if item not in scored},
        },
        "starts": _starts(records, scored) | {"apart": round(starts_apart, 4)},
        "displacements": {
            "memorized": _displacements([records[item.key] for item in reproduced]),
            "controls": _displacements([records[item.key] for item in controls]),
        },
        "lines": _lines(records, reproduced, threshold),
    }
    return summary | compared_groups(groups, settings.methods)


# ------------------------------------------------------------------------------------------------ starts and lines


def _starts(records: Mapping[str, Record], scored: Sequence[AuditItem]) -> dict[str, Any]:
    """How many starts bring their image back, by role and by image."""
    summary: dict[str, Any] = {"by image": []}
    for role in ("suspect", "control"):
        hits = [records[item.key]["success"] for item in scored if item.role == role]
        shares = [sum(row) / len(row) for row in hits]
        summary[role] = {"k": sum(map(sum, hits)), "n": sum(map(len, hits)), "share": to_json(within(shares))}
    for item in scored:
        record = records[item.key]
        row = {"key": item.key, "success": sum(record["success"]), "starts": len(record["success"])}
        summary["by image"].append(row | {"median": median(record["similarity"]), "caption": record["caption"]})
    return summary


def _lines(records: Mapping[str, Record], reproduced: Sequence[AuditItem], threshold: float) -> dict[str, Any]:
    """Share of points that give the image, by kind of line and share of the way; the interval is over images."""
    rows = [(item.key, row) for item in reproduced for row in records[item.key]["lines"]]
    rows += [(row["key"], row) for row in records.get("crossing", {"lines": []})["lines"]]
    table: dict[str, dict[str, Any]] = {}
    for kind in ("trigger", "caption", "start", "others", "carried", "mean"):
        for share in sorted({row["share"] for _, row in rows if row["kind"] == kind}):
            by_image: dict[str, list[bool]] = {}
            for key, row in rows:
                if (row["kind"], row["share"]) == (kind, share) and row["similarity"] is not None:
                    by_image.setdefault(key, []).append(row["similarity"] >= threshold)
            hits = [hit for some in by_image.values() for hit in some]
            mean = within([sum(some) / len(some) for some in by_image.values()])
            table.setdefault(kind, {})[f"{share:g}"] = {"k": sum(hits), "n": len(hits), "share": to_json(mean)}
    return table


def _displacements(rows: Sequence[Record]) -> dict[str, Any]:
    """Norms of the displacements, also by success, and their direction relative to the caption."""

    def norms(row: Record, success: bool) -> float | None:
        return _mean([n for n, hit in zip(row["norms"], row["success"], strict=True) if hit is success])

    return {
        "norm": to_json(within([_mean(row["norms"]) for row in rows])),
        "norm where the image came back": to_json(within([norms(row, True) for row in rows])),
        "norm where it did not": to_json(within([norms(row, False) for row in rows])),
        "caption distance of starts": to_json(within([_mean(row["caption distance"]["start"]) for row in rows])),
        "caption distance of triggers": to_json(within([_mean(row["caption distance"]["trigger"]) for row in rows])),
        "cosine towards the caption": to_json(within([_mean(row["towards caption"]) for row in rows])),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
