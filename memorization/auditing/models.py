"""Which model an audit examines, and what its record states about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffkit.named_pipeline import name_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Adapter", "Applied", "AuditedModel", "Reference"]


class Reference(NamedTuple):
    """A model not trained on the suspects: what the user called it, how to load it, its weights' checksum."""

    model: str
    load: Callable[[], DiffusionPipeline]
    model_sha256: str | None = None


class Applied(NamedTuple):
    """The mitigation that the pipeline carries: its method and the checksum of its folder; for the record only."""

    method: str
    sha256: str
    folder: str


class Adapter(NamedTuple):
    """The LoRA fused into the pipeline's weights: what the user called it, its file's checksum."""

    name: str
    sha256: str


@dataclass(frozen=True)
class AuditedModel:
    """A model to audit. It is loaded after the settings were checked.

    Attributes:
        name: what the user calls the model.
        load: gives the pipeline, with its mitigation and LoRA applied.
        sha256: checksum of the weights, if known.
        mitigation: what was applied to the pipeline; ``lora``: what was fused into it; both for the record only.
        reference: attacked with the same suspects, starts and seeds; a suspect that it reproduces too is inconclusive.
    """

    name: str
    load: Callable[[], DiffusionPipeline]
    sha256: str | None = None
    mitigation: Applied | None = None
    lora: Adapter | None = None
    reference: Reference | None = None

    @classmethod
    def of(cls, model: str | DiffusionPipeline | AuditedModel, name: str | None = None) -> AuditedModel:
        """A model by its name, or a pipeline; ``name`` is for the record, by default the one it was loaded by."""
        if isinstance(model, str):
            model = cls.from_pretrained(model)
        if isinstance(model, AuditedModel):
            return model if name is None else replace(model, name=name)
        return cls(name or name_of(model), lambda: model)

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        mitigation: str | Path | None = None,
        lora: str | None = None,
        reference_model: str | None = None,
    ) -> AuditedModel:
        """A model that :func:`diffkit.load_pipeline` loads, with the same arguments.

        Args:
            reference_model: name of the reference model, "none", or None for the default, see
                :func:`reference_name`.

        Raises:
            InputError: a model, LoRA or mitigation that does not exist.
        """
        from diffkit.loading import load_pipeline, model_checksum
        from diffkit.lora import lora_checksum

        def load() -> DiffusionPipeline:
            return load_pipeline(model, revision=revision, dtype=dtype, device=device, mitigation=mitigation, lora=lora)

        reference = reference_name(model, lora, reference_model)
        other_revision = revision if reference_model is None else None

        def load_reference() -> DiffusionPipeline:
            return load_pipeline(str(reference), revision=other_revision, dtype=dtype, device=device)

        return cls(
            _with_revision(model, revision),
            load,
            model_checksum(model),
            None if mitigation is None else _applied(mitigation),
            None if lora is None else Adapter(lora, lora_checksum(lora)),
            None
            if reference is None
            else Reference(_with_revision(reference, other_revision), load_reference, model_checksum(reference)),
        )


def reference_name(model: str, lora: str | None, reference_model: str | None) -> str | None:
    """The reference model's name: the given one; by default, with a LoRA, the model without it; else None."""
    if reference_model is None:
        return None if lora is None else model
    return None if reference_model == "none" else reference_model


def _with_revision(model: str, revision: str | None) -> str:
    return model if revision is None else f"{model}@{revision}"


def _applied(folder: str | Path) -> Applied:
    """The mitigation's record."""
    from diffkit.mitigation import read_card

    card = read_card(folder)
    return Applied(str(card["method"]), str(card["weights_sha256"]), str(folder))
