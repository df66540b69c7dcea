"""What the record of a run states about the mitigations of its pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffkit.errors import InputError
from diffkit.mitigation import OF_WEIGHTS, Mitigation, card_checksum, card_of, mitigation_folder
from diffkit.noted_options import NotedMitigation, mitigations_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["MitigationRecord", "checksum_for", "record_of", "recorded", "recorded_checksum"]


class MitigationRecord(NamedTuple):
    """A mitigation that a pipeline carries: its method, its checksum, and the folder that holds it, if one does."""

    method: str
    sha256: str
    folder: str | None


def recorded(pipe: DiffusionPipeline) -> MitigationRecord | None:
    """The record of the mitigations that a pipeline carries now; of several one record, in their order.

    Raises:
        InputError: a LoRA was loaded beside one of weights, so that the pipeline does not run what that says.
    """
    notes = mitigations_of(pipe)
    cards = [card_of(note.mitigation) for note in notes]
    if any(card["kind"] in OF_WEIGHTS for card in cards):
        _refuse_adapters(pipe)
    records = [_record(note, card) for note, card in zip(notes, cards, strict=True)]
    if len(records) < 2:
        return records[0] if records else None
    checksum = sha256("\n".join(record.sha256 for record in records).encode()).hexdigest()
    return MitigationRecord(", ".join(record.method for record in records), checksum, None)


def recorded_checksum(pipe: DiffusionPipeline) -> str | None:
    """The checksum of the mitigations that a pipeline carries now, see :func:`recorded`; None without any."""
    record = recorded(pipe)
    return None if record is None else record.sha256


def _refuse_adapters(pipe: DiffusionPipeline) -> None:
    from diffkit.families import pipe_denoiser
    from diffkit.mitigation.kinds import ADAPTER

    others = set(getattr(pipe_denoiser(pipe), "peft_config", ())) - {ADAPTER}
    if others:
        raise InputError(
            f"The LoRA {sorted(others)[0]!r} was loaded into a pipeline that carries a mitigation, which does not hold "
            "for it; make it part of the weights (pipe.fuse_lora(), pipe.unload_lora_weights()) before the mitigation."
        )


def record_of(note: NotedMitigation) -> MitigationRecord:
    """The record of one mitigation.

    Raises:
        InputError: its folder holds none.
    """
    return _record(note, card_of(note.mitigation))


def _record(note: NotedMitigation, card: Mapping[str, Any]) -> MitigationRecord:
    method, checksum = str(card["method"]), card_checksum(card)
    folder = None if isinstance(note.mitigation, Mitigation) else str(note.mitigation)
    if note.only is None:
        return MitigationRecord(method, checksum, folder)
    checksum = sha256(f"{checksum}\n{note.only}".encode()).hexdigest()
    return MitigationRecord(f"{method} of {note.only}", checksum, None)


def checksum_for(out: Path, mitigation: str | Path) -> str:
    """The checksum of a mitigation's folder for the configuration of the detection or study in ``out``.

    Version 0.1.0 stated that of the whole folder, which a repeated ``diffkit mitigate`` changes; its runs keep it.
    """
    from diffkit.runs import sha256_folder

    try:
        stated = json.loads((out / "run.json").read_bytes())["config"]["mitigation"]
    except (OSError, ValueError, KeyError, TypeError):
        stated = None
    whole = stated is not None and stated == sha256_folder(mitigation_folder(mitigation))
    return str(stated) if whole else record_of(NotedMitigation(mitigation, None)).sha256
