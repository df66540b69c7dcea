"""Recompute an audit's summary from its journal, and compare the two key by key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple, cast

from diffkit.errors import InputError
from diffkit.runs.files import dump_json
from diffkit.suspects import RowError
from memorization.auditing.aggregate import conclude, of_role
from memorization.auditing.order import needs_reference
from memorization.auditing.result import judged_records, repeated_controls_of
from memorization.auditing.settings import AuditSettings
from memorization.auditing.summary import SUMMARY_SCHEMA, summarise_audit
from memorization.auditing.verification import AuditFiles, Check, checked, unchecked
from memorization.copies import OperatingPoint
from memorization.copies.references import NO_IMAGE

__all__ = ["Difference", "compare_values", "figure_checks", "recomputed_summary", "reference_spared"]

#: Check -> keys of summary.json; all others belong to "other figures".
GROUPS = {
    "verdicts": ("suspects", "verdicts", "rates", "by_kind", "clusters", "rung", "budget"),
    "suspects": ("findings",),
}
#: Names in summary.json and in the configuration of the same thing.
MODEL_KEYS = {
    "model": "model",
    "model_sha256": "model_sha256",
    "lora": "lora",
    "mitigation": "mitigation",
    "reference_model": "reference",
}
#: What does not depend on the rules of the verdicts, so that summaries of earlier rules are compared in it too.
MEASURED = ("suspects", "detectors", "cost", "settings")
MEASURED_OF_A_SUSPECT = ("key", "kind", "caption", "caption_max", "seeds", "seeds_at_threshold")
#: What is broken where a record's values are not those of an audit.
BROKEN = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Difference(NamedTuple):
    """Where two values differ; ``missing``: the recorded one has no such key."""

    key: str
    sentence: str
    missing: bool = False


def figure_checks(files: AuditFiles) -> list[Check]:
    """The checks of summary.json: what follows from the journal, what from the configuration, what from neither."""
    try:
        given = [_model(files), _operating_point(files)]
    except BROKEN as error:
        given = [checked("operating point", [f"summary.json is damaged: {type(error).__name__} {error}"], "")]
    try:
        expected = recomputed_summary(files)
    except BROKEN as error:
        why = f"the journal's records give no summary: {type(error).__name__} {error}"
        return [checked("verdicts", [why], ""), *given]
    recorded = {key: value for key, value in files.summary.items() if key not in (*MODEL_KEYS, "schema_version")}
    if files.summary["schema_version"] < SUMMARY_SCHEMA:
        return [*_measured(files, recorded, expected), *given]
    named = {key for keys in GROUPS.values() for key in keys}
    others = tuple(key for key in {**expected, **recorded} if key not in named)
    groups = {**GROUPS, "other figures": others}
    return [*(_group(name, keys, files, recorded, expected) for name, keys in groups.items()), *given]


def recomputed_summary(files: AuditFiles) -> dict[str, Any]:
    """All figures that follow from the journal, as JSON would give them back.

    Taken from summary.json, since they follow from the images and not from the journal: the operating point, the
    clusters of near-duplicates, the rows that could not be read.
    """
    summary = files.summary
    errors: dict[str, list[RowError]] = {"suspects": [], "controls": []}
    for row in summary["unreadable"]:
        errors[row["of"]].append(RowError(row["source"], row["row"], row["reason"]))
    figures = summarise_audit(
        judged_records(files.records, summary),
        settings_of(files.record["config"]),
        operating_point=cast("OperatingPoint", summary["operating_point"]),
        labels=summary["clusters"]["labels"],
        repeated_controls=repeated_controls_of(summary),
        suspect_errors=errors["suspects"],
        control_errors=errors["controls"],
    )
    figures["clusters"]["distinct_controls"] = summary["clusters"]["distinct_controls"]
    expected: dict[str, Any] = json.loads(dump_json(figures))
    return expected


def reference_spared(files: AuditFiles) -> int:
    """How many suspects with an image were not put before the reference model, since it could not acquit them."""
    if not files.record["config"].get("reference"):
        return 0
    try:
        records = judged_records(files.records, files.summary)
        own = {**of_role(records, "suspect"), **of_role(records, "control")}
        threshold = files.summary["operating_point"]["threshold"]
        findings = conclude(own, settings_of(files.record["config"]), threshold=threshold).findings
        seen = {record["of"] for record in of_role(records, "reference").values()}
        by_caption, by_attack = needs_reference(findings, threshold)
        spared = set(of_role(records, "suspect")) - seen - by_caption - by_attack
        return sum(records[key]["reason"] != NO_IMAGE for key in spared)
    except BROKEN:
        return 0


def settings_of(config: Mapping[str, Any]) -> AuditSettings:
    """The settings in an audit's configuration.

    Raises:
        InputError: they are not those of an audit.
    """
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config["settings"].items()
    }
    try:
        return AuditSettings(**values)
    except TypeError as error:
        raise InputError(f"The configuration's settings are not those of this diffkit: {error}.") from error


def _group(
    name: str, keys: tuple[str, ...], files: AuditFiles, recorded: Mapping[str, Any], expected: Mapping[str, Any]
) -> Check:
    old, new = ({key: values[key] for key in keys if key in values} for values in (recorded, expected))
    differences = list(compare_values(_by_key(old), _by_key(new)))
    earlier = _written_by(files) != metadata.version("diffkit")
    missing = [difference for difference in differences if difference.missing and earlier]
    changed = [difference.sentence for difference in differences if difference not in missing]
    figures = sum(1 for _ in _leaves(new))
    absent = f"the others are as the journal gives; {len(missing)} figures were not recorded" if missing else ""
    return checked(name, changed, f"{figures} figures, as the journal gives them", missing=absent)


def _measured(files: AuditFiles, recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> list[Check]:
    """The checks of a summary with verdicts by earlier rules."""

    def measured(summary: Mapping[str, Any]) -> dict[str, Any]:
        suspects = [{key: row.get(key) for key in MEASURED_OF_A_SUSPECT} for row in summary["findings"]]
        return {**{key: summary.get(key) for key in MEASURED}, "findings": suspects}

    version = files.summary["schema_version"]
    why = f"judged by rules of version {version}, this diffkit has {SUMMARY_SCHEMA}: diffkit audit judges again"
    old, new = measured(recorded), measured(expected)
    rest = _group("other figures", tuple(new), files, old, new)
    return [checked("verdicts", [], "", missing=why), rest]


def _written_by(files: AuditFiles) -> str | None:
    """Version of the diffkit that wrote the summary, as run.json states."""
    sessions = files.record.get("sessions") or [{}]
    version = sessions[-1].get("packages", {}).get("diffkit")
    return str(version) if version is not None else None


def _model(files: AuditFiles) -> Check:
    config = files.record["config"]
    pairs = [(files.summary.get(key), config.get(name), key) for key, name in MODEL_KEYS.items()]
    differences = [difference.sentence for old, new, key in pairs for difference in compare_values(old, new, key)]
    return checked("model", differences, "summary.json names the model of the configuration")


def _operating_point(files: AuditFiles) -> Check:
    """The threshold, which the images give through the model's autoencoder, unless the settings name it."""
    point, asked = files.summary["operating_point"], files.record["config"]["settings"].get("threshold")
    if asked is not None and asked != point["threshold"]:
        return checked("threshold", [f"summary.json used {point['threshold']}, the configuration says {asked}"], "")
    if asked is not None:
        return checked("threshold", [], f"{asked}, as configured")
    why = f"{point['threshold']:.4g} is taken from summary.json: to calibrate it takes the images and the model"
    return unchecked("threshold", why)


def _by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with their lists of suspects by the suspects' keys, so that a sentence can name them."""
    findings = values.get("findings")
    return {**values, "findings": {row["key"]: row for row in findings}} if findings is not None else dict(values)


def compare_values(recorded: object, expected: object, key: str = "") -> Iterator[Difference]:
    """Where two JSON values differ, one sentence each.

    Floats are equal within a relative 1e-6 (another library's last digits); what is recorded has five digits.

    Example:
        >>> [row.sentence for row in compare_values({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}})]
        ['a.b is 1 in summary.json and 2 by the journal', 'a.c is not in summary.json and 3 by the journal']
    """
    if isinstance(recorded, Mapping) and isinstance(expected, Mapping):
        for name in {**recorded, **expected}:
            path = f"{key}.{name}" if key else str(name)
            if name not in recorded:
                text = f"{path} is not in summary.json and {_shown(expected[name])} by the journal"
                yield Difference(path, text, missing=True)
            elif name not in expected:
                yield Difference(path, f"{path} is {_shown(recorded[name])} in summary.json and no figure of an audit")
            else:
                yield from compare_values(recorded[name], expected[name], path)
    elif isinstance(recorded, list) and isinstance(expected, list) and len(recorded) == len(expected):
        for index, pair in enumerate(zip(recorded, expected, strict=True)):
            yield from compare_values(*pair, f"{key}[{index}]")
    elif not _equal(recorded, expected):
        yield Difference(key, f"{key} is {_shown(recorded)} in summary.json and {_shown(expected)} by the journal")


def _equal(first: object, second: object) -> bool:
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)
    return type(first) is type(second) and first == second


def _leaves(value: object) -> Iterator[object]:
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if children is None:
        yield value
    else:
        for child in children:
            yield from _leaves(child)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
