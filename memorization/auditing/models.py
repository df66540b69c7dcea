"""Which model an audit looks at, what stands in for one that cannot have seen the suspects, and the run itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from memorization.auditing.run import Applied, Reference
    from memorization.auditing.settings import AuditSettings
    from memorization.items import Gathered

__all__ = ["DEFAULT_DETECTORS", "Place", "run"]

#: The audit's own choice, where the user makes none: the first that fits the family. The first listens to a
#: generation that is made anyway; the second needs nothing but generations.
DEFAULT_DETECTORS = ("noise_magnitude", "seed_agreement")


class Place(NamedTuple):
    """Which models, and where they run.

    Attributes:
        reference_model: what the user called it, "none", or None for the default: with a LoRA the model without it.
        lora: a fine-tune of the model; it is what is audited.
    """

    model: str
    revision: str | None
    dtype: str
    device: str
    mitigation: Path | None
    reference_model: str | None
    lora: str | None = None

    def reference(self) -> str | None:
        """The reference model's name, or None without one."""
        if self.reference_model is None:
            return None if self.lora is None else self.model
        return None if self.reference_model == "none" else self.reference_model

    def load_reference(self) -> Reference | None:
        """The reference, not loaded yet."""
        from diffkit.loading import load_pipeline, model_checksum
        from memorization.auditing.run import Reference

        name = self.reference()
        if name is None:
            return None
        revision = self.revision if self.reference_model is None else None
        label = name if revision is None else f"{name}@{revision}"

        def load() -> Any:
            return load_pipeline(name, revision=revision, dtype=self.dtype, device=self.device)

        return Reference(label, load, model_checksum(name))

    def applied(self) -> Applied | None:
        """The mitigation's record."""
        from diffkit.mitigation import read_card
        from memorization.auditing.run import Applied

        if self.mitigation is None:
            return None
        card = read_card(self.mitigation)
        return Applied(str(card["method"]), str(card["weights_sha256"]), str(self.mitigation))


def run(
    gathered: Gathered,
    settings: AuditSettings,
    place: Place,
    out: Path,
    *,
    save_triggers: bool,
    any_detector: bool = False,
) -> dict[str, Any]:
    """Load the model and audit it; returns the content of summary.json.

    Args:
        any_detector: take the first of :data:`DEFAULT_DETECTORS` that fits the model's family.

    Raises:
        InputError: an unknown attack or detector, before a model is loaded or a folder made; a model, LoRA or
            mitigation that is not there.
    """
    from diffkit import parallel
    from diffkit.loading import load_pipeline, model_checksum
    from diffkit.lora import lora_checksum
    from memorization.auditing.attack_suite import build_attacks
    from memorization.auditing.run import Adapter, audit
    from memorization.detection import make_detector
    from memorization.detection.compatibility import fitting

    for attack in settings.attacks:
        build_attacks(attack, settings)
    for detector in settings.detectors:
        make_detector(detector)
    parallel.processes()  # before the model: it gives each process its device
    applied, reference = place.applied(), place.load_reference()
    pipe = load_pipeline(
        place.model,
        revision=place.revision,
        dtype=place.dtype,
        device=place.device,
        mitigation=place.mitigation,
        lora=place.lora,
    )
    if any_detector:
        settings = replace(settings, detectors=fitting(pipe, DEFAULT_DETECTORS)[:1])
    result = audit(
        pipe,
        gathered,
        out=out,
        model=place.model if place.revision is None else f"{place.model}@{place.revision}",
        settings=settings,
        model_sha256=model_checksum(place.model),
        mitigation=applied,
        reference=reference,
        lora=None if place.lora is None else Adapter(place.lora, lora_checksum(place.lora)),
        save_triggers=save_triggers,
    )
    return result.summary
