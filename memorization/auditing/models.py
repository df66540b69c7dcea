"""Which model an audit examines, and what its record states about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from diffkit.mitigation.record import MitigationRecord, record_of, recorded
from diffkit.model_options import ModelOptions
from diffkit.named_pipeline import name_of
from diffkit.noted_options import NotedMitigation, lora_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Adapter", "AuditedModel", "Reference", "reference_options"]


class Reference(NamedTuple):
    """A model not trained on the suspects: what the user called it, how to load it, its weights' checksum."""

    model: str
    load: Callable[[], DiffusionPipeline]
    model_sha256: str | None = None


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
    mitigation: MitigationRecord | None = None
    lora: Adapter | None = None
    reference: Reference | None = None

    @classmethod
    def of(cls, model: str | DiffusionPipeline | AuditedModel, name: str | None = None) -> AuditedModel:
        """A model by its name, or a pipeline; ``name`` is for the record, by default the one it was loaded by.

        The mitigations that a pipeline carries, and the LoRA it was loaded with, are recorded too.
        """
        if isinstance(model, str):
            model = cls.from_pretrained(model)
        if isinstance(model, AuditedModel):
            return model if name is None else replace(model, name=name)
        lora = lora_of(model)
        return cls(
            name or name_of(model),
            lambda: model,
            mitigation=recorded(model),
            lora=None if lora is None else _adapter(lora),
        )

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
        variant: str | None = None,
        config: str | None = None,
        scheduler: str | None = None,
        reference_model: str | None = None,
    ) -> AuditedModel:
        """A model that :func:`diffkit.load_pipeline` loads, with the same arguments.

        Args:
            reference_model: name of the reference model, "none", or None for the default, see
                :func:`reference_name`.

        Raises:
            InputError: a model, LoRA or mitigation that does not exist.
        """
        options = ModelOptions(
            model=model,
            revision=revision,
            dtype=dtype,
            device=device,
            variant=variant,
            config=config,
            scheduler=scheduler,
            lora=lora,
            mitigation=None if mitigation is None else Path(mitigation),
        )
        return cls.from_options(options, reference_model=reference_model)

    @classmethod
    def from_options(cls, options: ModelOptions, *, reference_model: str | None = None) -> AuditedModel:
        """A model by the options of a command; the reference model is sampled by the same scheduler.

        Args:
            reference_model: see :meth:`from_pretrained`.

        Raises:
            InputError: a model, LoRA or mitigation that does not exist.
        """
        bare = replace(options, lora=None, mitigation=None)
        other = reference_options(options, reference_model)
        return cls(
            options.name,
            options.load,
            bare.checksum(),
            None if options.mitigation is None else record_of(NotedMitigation(options.mitigation, None)),
            None if options.lora is None else _adapter(options.lora),
            None if other is None else Reference(other.name, other.load, other.checksum()),
        )


def reference_options(options: ModelOptions, reference_model: str | None) -> ModelOptions | None:
    """How the reference model is loaded: by default, with a LoRA, as the model without it; None without one."""
    name = reference_name(options.model, options.lora, reference_model)
    if name is None:
        return None
    bare = replace(options, lora=None, mitigation=None)
    return bare if reference_model is None else replace(bare, model=name, revision=None, variant=None, config=None)


def reference_name(model: str, lora: str | None, reference_model: str | None) -> str | None:
    """The reference model's name: the given one; by default, with a LoRA, the model without it; else None."""
    if reference_model is None:
        return None if lora is None else model
    return None if reference_model == "none" else reference_model


def _adapter(lora: str) -> Adapter:
    """The LoRA's record."""
    from diffkit.lora import lora_checksum

    return Adapter(lora, lora_checksum(lora))
