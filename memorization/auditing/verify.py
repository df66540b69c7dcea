"""Verify a finished audit from its files: checksums, the journal, and the verdicts recomputed from it. Loads no model.

A second party need not trust the report: what follows from the journal is computed again and compared. What does not
follow from it is named as such. Checksums find damage and edits of single files; they are no signature: whoever writes
the whole folder anew, journal included, is not found out, so compare the files' checksums with those that were
published with the audit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.errors import InputError
from diffkit.model_options import ModelOptions
from diffkit.runs import sha256_file
from diffkit.runs.identity import config_hash
from diffkit.runs.journal import read_journal
from memorization.auditing.result import read_records
from memorization.auditing.summary import SUMMARY_SCHEMA
from memorization.auditing.verification import AuditFiles, Check, Verification, checked, unchecked
from memorization.auditing.verify_figures import figure_checks, reference_spared
from memorization.auditing.verify_inputs import data_check, weight_checks
from memorization.items import Source, stated_count

__all__ = ["read_audit", "verify_audit"]

VERIFICATION_SCHEMA = 1
FILES = ("run.json", "journal.jsonl", "summary.json", "report.html", "results.csv")


def verify_audit(
    folder: str | Path,
    *,
    suspects: Source | None = None,
    controls: Source | None = None,
    model: ModelOptions | None = None,
    reference_model: str | None = None,
) -> Verification:
    """Check a finished audit against itself, and against its data and models where they are given.

    Args:
        folder: the audit's.
        suspects: what was audited, see :func:`memorization.items.gather`; ``controls`` likewise. Of a longer list, as
            many as were audited are taken.
        model: the audited model, whose files' checksums are compared; with its LoRA and mitigation.
        reference_model: the reference model's name.

    Raises:
        InputError: no finished audit in the folder, a newer diffkit's, or data or a model that cannot be read.

    Example:
        >>> import tempfile
        >>> from memorization import AuditSettings, audit, read_suspects
        >>> small = AuditSettings(budgets=(0, 1), starts=("other",), generations=1, attack_generations=1,
        ...                       num_inference_steps=2, draws=1, micro_batch=2)
        >>> run = audit("lab", read_suspects("lab:planted")[0][:1], out=tempfile.mkdtemp(), settings=small)
        >>> verify_audit(run.folder)["result"]
        'ok'
        >>> summary = run.folder / "summary.json"
        >>> _ = summary.write_text(summary.read_text().replace('"verdict": "replicated"', '"verdict": "retained"'))
        >>> [check["name"] for check in verify_audit(run.folder)["checks"] if check["status"] == "differs"]
        ['suspects']
    """
    folder = Path(folder)
    journal, items = _journal(folder)
    files = read_audit(folder, items)
    checks = [
        _configuration(files),
        journal,
        _items(files),
        _saved_files(files),
        *figure_checks(files),
        data_check(files, suspects, controls),
        *weight_checks(files, model, reference_model),
        unchecked("report", "the figures in report.html, its pages and results.csv are not compared"),
    ]
    return {
        "schema_version": VERIFICATION_SCHEMA,
        "result": "differs" if any(check["status"] == "differs" for check in checks) else "ok",
        "checks": checks,
        "sha256": {name: sha256_file(folder / name) for name in FILES if (folder / name).is_file()},
    }


def read_audit(folder: Path, items: Mapping[str, Mapping[str, Any]]) -> AuditFiles:
    """The files of a finished audit.

    Args:
        folder: the audit's.
        items: of its journal.

    Raises:
        InputError: there is no finished audit, or a newer diffkit's.
    """
    try:
        record, summary = (json.loads((folder / file).read_bytes()) for file in ("run.json", "summary.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no finished audit ({error}); finish it with diffkit audit.") from error
    if not isinstance(record, dict) or not isinstance(summary, dict) or record.get("kind") != "audit":
        raise InputError(f"{folder} holds no audit; give the folder of a finished diffkit audit.")
    if record.get("finished") is None or not isinstance(record.get("config"), dict):
        raise InputError(f"{folder} holds no finished audit; finish it with diffkit audit --out {folder}.")
    version = summary.get("schema_version")
    if not isinstance(version, int) or version > SUMMARY_SCHEMA:
        raise InputError(f"{folder} has a summary of version {version}, this diffkit knows {SUMMARY_SCHEMA}: upgrade.")
    return AuditFiles(folder, record, summary, read_records(items))


def _configuration(files: AuditFiles) -> Check:
    expected, stated = config_hash(files.record["config"]), files.record.get("config_hash")
    differences = [] if stated == expected else [f"run.json states the hash {stated}; its configuration has {expected}"]
    return checked("configuration", differences, f"its hash is {expected[:16]}…, as recorded")


def _journal(folder: Path) -> tuple[Check, dict[str, dict[str, Any]]]:
    """Whether every line is whole; the items of a journal that is not are none."""
    path = folder / "journal.jsonl"
    try:
        content = read_journal(path)
    except InputError as error:
        return checked("journal", [str(error)], ""), {}
    torn = (path.stat().st_size if path.is_file() else 0) - content.sound_bytes
    differences = [f"the last line is torn: {torn} bytes without an end"] if torn else []
    return checked("journal", differences, f"{len(content.items)} whole lines, no item twice"), content.items


def _items(files: AuditFiles) -> Check:
    expected = files.record["config"].get("items")
    spared, left_out = reference_spared(files), len(files.left_out)
    differences = []
    if expected != stated_count(record["role"] for record in files.records.values()) + spared + left_out:
        differences.append(f"the configuration has {expected} items, the journal {len(files.records)}")
    for key, record in files.records.items():
        own = f"{record.get('edit') or record.get('role')}:{record.get('id')}"
        if own != key:
            differences.append(f"the record of {key} is that of {own}")
    notes = [f"; {spared} suspects did not need the reference model"] if spared else []
    notes += [f"; {left_out} controls show pictures of others"] if left_out else []
    return checked("items", differences, f"{len(files.records)} items, each with its record{''.join(notes)}")


def _saved_files(files: AuditFiles) -> Check:
    """Whether the pictures and triggers that the records name are there, with the content they had."""
    differences: list[str] = []
    total, unrecorded = 0, 0
    for key, record in files.records.items():
        names = [*record.get("pictures", {}).values(), *([record["triggers"]] if "triggers" in record else [])]
        recorded = record.get("sha256", {})
        for name in names:
            total += 1
            unrecorded += name not in recorded
            difference = _file_difference(files.folder, name, recorded.get(name))
            differences += [f"{key}: {difference}"] if difference else []
        differences += [
            f"{key}: a checksum of {name}, which it does not name" for name in recorded if name not in names
        ]
    missing = f"all {total} files are there; the content of {unrecorded} was not recorded" if unrecorded else ""
    return checked("pictures", differences, f"{total} files with the recorded SHA-256", missing=missing)


def _file_difference(folder: Path, name: str, recorded: str | None) -> str | None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{name} leads out of the folder"
    if not path.is_file():
        return f"{name} is missing"
    if recorded is not None and sha256_file(path) != recorded:
        return f"{name} is not the file that was recorded"
    return None
