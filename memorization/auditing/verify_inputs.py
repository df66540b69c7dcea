"""Compare an audit's record with the files that went into it: the images and captions, the models' weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from diffkit.errors import InputError
from diffkit.model_options import ModelOptions
from memorization.auditing.aggregate import of_role
from memorization.auditing.verification import AuditFiles, Check, checked, unchecked
from memorization.items import Source, data_digest, gather

__all__ = ["data_check", "weight_checks"]


def data_check(files: AuditFiles, suspects: Source | None, controls: Source | None) -> Check:
    """Whether captions and images are those that were audited, by the digest over their contents in order.

    Raises:
        InputError: a source that cannot be read, or only one of two was given.
    """
    counts = {role: len(of_role(files.records, role)) for role in ("suspect", "control")}
    counts["control"] += len(files.left_out)
    if suspects is None:
        return unchecked("data", "give --suspects and --controls to compare the files that were audited")
    if counts["control"] and controls is None:
        raise InputError(f"The audit has {counts['control']} controls, one digest with the suspects: add --controls.")
    gathered = gather(suspects, controls, limit=counts["suspect"] or None, limit_controls=counts["control"])
    digest, recorded = data_digest(gathered.items), files.record["config"].get("data_sha256")
    differences = [] if digest == recorded else [f"the files give {digest}, the configuration states {recorded}"]
    for group, errors in (("suspects", gathered.suspect_errors), ("controls", gathered.control_errors)):
        stated = sum(row["of"] == group for row in files.summary["unreadable"])
        if stated != len(errors):
            differences.append(f"{len(errors)} {group} cannot be read, summary.json states {stated}")
    return checked("data", differences, f"{len(gathered.items)} captions and their images, as audited")


def weight_checks(files: AuditFiles, model: ModelOptions | None, reference_model: str | None) -> list[Check]:
    """Whether the models' files are those that were audited.

    Raises:
        InputError: a model, LoRA or mitigation that does not exist.
    """
    config = files.record["config"]
    if model is None and reference_model is None:
        return [unchecked("weights", "give --model, with its --lora and --mitigation, to compare the models' files")]
    checks = []
    if model is not None:
        bare = replace(model, lora=None, mitigation=None)
        checks.append(_weights("model", bare.checksum(), config.get("model_sha256"), audited=True))
        checks += list(_additions(model, config))
    if reference_model is None and config.get("reference"):
        checks.append(unchecked("weights, reference model", "the audit had one: give --reference-model to compare it"))
    if reference_model is not None:
        recorded = config.get("reference") or {}
        found = ModelOptions(model=reference_model).checksum()
        checks.append(_weights("reference model", found, recorded.get("sha256"), audited=bool(recorded)))
    return checks


def _additions(model: ModelOptions, config: Mapping[str, Any]) -> Iterator[Check]:
    """The LoRA's and the mitigation's checks, where one was given or audited."""
    from diffkit.lora import lora_checksum
    from diffkit.mitigation import WEIGHTS, card_checksum, mitigation_folder, read_card
    from diffkit.runs import sha256_file

    checksums: dict[str, str | None] = {"lora": None, "mitigation": None}
    if model.lora is not None:
        checksums["lora"] = lora_checksum(model.lora)
    if model.mitigation is not None:
        weights = sha256_file(mitigation_folder(model.mitigation) / WEIGHTS)
        checksums["mitigation"] = card_checksum(read_card(model.mitigation) | {"weights_sha256": weights})
    for name, checksum in checksums.items():
        recorded = config.get(name)
        if checksum is not None:
            yield _weights(name, checksum, (recorded or {}).get("sha256"), audited=bool(recorded))
        elif recorded:
            yield unchecked(f"weights, {name}", f"the audit had one: give --{name} to compare its file")


def _weights(name: str, checksum: str | None, recorded: str | None, *, audited: bool) -> Check:
    label = f"weights, {name}"
    if not audited:
        return checked(label, [f"the audit had no {name}"], "")
    if checksum is None or recorded is None:
        return checked(label, [], "", missing="of a hub id the revision is recorded, no checksum")
    differences = [] if checksum == recorded else [f"the files give {checksum}, the configuration states {recorded}"]
    return checked(label, differences, f"SHA-256 {checksum[:16]}…, as audited")
