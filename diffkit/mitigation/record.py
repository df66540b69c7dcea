"""What the record of a run states about the mitigations of its pipeline."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from diffkit.noted_options import NotedMitigation, mitigations_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["MitigationRecord", "record_of", "recorded"]


class MitigationRecord(NamedTuple):
    """A mitigation that a pipeline carries: its method, its checksum, and its folder, none if it was never saved."""

    method: str
    sha256: str
    folder: str | None


def recorded(pipe: DiffusionPipeline) -> MitigationRecord | None:
    """The record of the mitigations that a pipeline carries now; of several one record, in their order."""
    records = [record_of(note) for note in mitigations_of(pipe)]
    if len(records) < 2:
        return records[0] if records else None
    checksum = sha256("\n".join(record.sha256 for record in records).encode()).hexdigest()
    folders = ", ".join(record.folder or "not saved" for record in records)
    return MitigationRecord(", ".join(record.method for record in records), checksum, folders)


def record_of(note: NotedMitigation) -> MitigationRecord:
    """The record of one mitigation.

    Raises:
        InputError: its folder holds none.
    """
    from diffkit.mitigation import Mitigation, card_checksum, card_of

    card = card_of(note.mitigation)
    method, checksum = str(card["method"]), card_checksum(card)
    if note.only is not None:
        method, checksum = f"{method} of {note.only}", sha256(f"{checksum}\n{note.only}".encode()).hexdigest()
    return MitigationRecord(method, checksum, None if isinstance(note.mitigation, Mitigation) else str(note.mitigation))
