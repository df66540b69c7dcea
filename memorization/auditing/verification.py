"""What the verification of an audit consists of: its checks, and the files that they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from typing_extensions import TypedDict

from memorization.auditing.result import AuditRecord, repeated_controls_of

__all__ = ["AuditFiles", "Check", "Status", "Verification", "checked", "unchecked"]

Status = Literal["ok", "differs", "not recorded", "not checked"]


class Check(TypedDict):
    """One check: its result in a sentence, and a sentence for each difference."""

    name: str
    status: Status
    detail: str
    differences: list[str]


class Verification(TypedDict):
    """The checks of one audit; ``sha256``: of the files that were read."""

    schema_version: int
    result: Literal["ok", "differs"]
    checks: list[Check]
    sha256: dict[str, str]


class AuditFiles(NamedTuple):
    """What a finished audit's folder holds: run.json, summary.json, and the records of the journal."""

    folder: Path
    record: Mapping[str, Any]
    summary: Mapping[str, Any]
    records: dict[str, AuditRecord]

    @property
    def left_out(self) -> set[str]:
        """Keys of the controls without a record, since they show the picture of another."""
        return set(repeated_controls_of(self.summary)) - set(self.records)


def checked(name: str, differences: Sequence[str], detail: str, *, missing: str = "") -> Check:
    """A check that was made: ``differs`` with any difference, ``not recorded`` where ``missing`` says what is."""
    status: Status = "differs" if differences else "not recorded" if missing else "ok"
    text = f"{len(differences)} differ" if differences else missing or detail
    return _check(name, status, text, differences)


def _check(name: str, status: Status, detail: str, differences: Sequence[str] = ()) -> Check:
    return {"name": name, "status": status, "detail": detail, "differences": list(differences)}


def unchecked(name: str, why: str) -> Check:
    """A check that was not made."""
    return _check(name, "not checked", why)
