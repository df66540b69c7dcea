"""Summary of a detection: thresholds from the controls, flagged suspects, p-values, unknown scores."""

from __future__ import annotations

from collections.abc import Mapping

from diffkit.stats import auc, clopper_pearson, rank_p_value
from memorization.detection.calibrate import MIN_NEGATIVES, threshold_at
from memorization.detection.result import (
    DetectFigures,
    DetectorResult,
    DetectRecord,
    FlaggedCaptions,
    ScoreResult,
    SuspectResult,
    ThresholdUsed,
    UnscoredCaption,
)
from memorization.detection.settings import DetectSettings

Records = Mapping[str, DetectRecord]


def summarise_detection(records: Records, settings: DetectSettings) -> DetectFigures:
    """The figures of summary.json: a table of detectors, one of suspects, and what could not be scored.

    A suspect is flagged by a detector when its score is strictly above the threshold. A flag is no proof: a caption may
    score high for other reasons; and an unflagged caption may be memorized.
    """
    suspects = {key: record for key, record in records.items() if record["role"] == "suspect"}
    controls = {key: record for key, record in records.items() if record["role"] == "control"}
    table = {name: _detector(name, suspects, controls, settings) for name in settings.detectors}
    rows = {key: _suspect(record, table, controls) for key, record in suspects.items()}
    unscored: list[UnscoredCaption] = [
        {"key": key, "detector": name, "reason": score["reason"]}
        for key, record in records.items()
        for name, score in record["scores"].items()
        if score["value"] is None
    ]
    return {
        "suspects": len(suspects),
        "controls": len(controls),
        "detectors": table,
        "findings": rows,
        "flagged": sum(row["flagged"] is True for row in rows.values()),
        "unscored": unscored,
    }


def _values(name: str, records: Records) -> list[float]:
    values = [record["scores"][name]["value"] for record in records.values()]
    return [value for value in values if value is not None]


def _detector(name: str, suspects: Records, controls: Records, settings: DetectSettings) -> DetectorResult:
    scores, other = _values(name, suspects), _values(name, controls)
    threshold: ThresholdUsed = {"value": settings.threshold, "source": "given", "false_alarms": None}
    if settings.threshold is None and len(other) < MIN_NEGATIVES:
        threshold["source"] = f"none: {len(other)} controls were scored, at least {MIN_NEGATIVES} are needed"
    elif settings.threshold is None:
        chosen = threshold_at(other, settings.fpr)
        source = f"the controls, at most {100 * settings.fpr:.3g}% of them above it"
        threshold = {"value": chosen.value, "source": source, "false_alarms": chosen.false_alarms}
    flagged: FlaggedCaptions | None = None
    limit = threshold["value"]
    if limit is not None and scores:
        count = sum(value > limit for value in scores)
        flagged = {"count": count, "n": len(scores), "interval": clopper_pearson(count, len(scores))}
    return {
        "threshold": threshold,
        "flagged": flagged,
        "auc_against_controls": auc(scores, other) if scores and other else None,
        "scored": {"suspects": len(scores), "controls": len(other)},
    }


def _suspect(record: DetectRecord, table: Mapping[str, DetectorResult], controls: Records) -> SuspectResult:
    by_detector: dict[str, ScoreResult] = {}
    for name, score in record["scores"].items():
        value, threshold = score["value"], table[name]["threshold"]["value"]
        others = _values(name, controls)
        by_detector[name] = {
            "value": value,
            "p": rank_p_value(value, others) if value is not None and others else None,
            "flagged": value > threshold if value is not None and threshold is not None else None,
            "reason": score["reason"],
        }
    flags = [entry["flagged"] for entry in by_detector.values() if entry["flagged"] is not None]
    return {
        "id": record["id"],
        "prompt": record["prompt"],
        "kind": record["kind"],
        "flagged": any(flags) if flags else None,
        "scores": by_detector,
    }
