"""What a pipeline was loaded with and what was applied to it, noted on it, so that every run records it alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = [
    "NotedMitigation",
    "lora_of",
    "mitigations_of",
    "note_lora",
    "note_mitigation",
    "note_options",
    "options_of",
]


def note_options(pipe: DiffusionPipeline, **options: object) -> None:
    """Note on a pipeline the options that changed how it was loaded; those that are None are not noted."""
    vars(pipe)["_loading_options"] = {name: str(value) for name, value in options.items() if value is not None}


def options_of(pipe: DiffusionPipeline) -> dict[str, str]:
    """What beyond the model's name a pipeline was loaded with: ``variant``, ``model_config``, ``scheduler``.

    They belong into the configuration of a run. Empty without any, so that runs of earlier versions resume.
    """
    return dict(vars(pipe).get("_loading_options", {}))


def note_lora(pipe: DiffusionPipeline, lora: str | None) -> None:
    """Note on a pipeline the LoRA that was fused into its weights when it was loaded."""
    vars(pipe)["_fused_lora"] = lora


def lora_of(pipe: DiffusionPipeline) -> str | None:
    """The LoRA that :func:`diffkit.load_pipeline` fused into a pipeline's weights."""
    lora: str | None = vars(pipe).get("_fused_lora")
    return lora


class NotedMitigation(NamedTuple):
    """A mitigation that a pipeline carries, a ``Mitigation`` or its folder, and the one suspect whose part it is."""

    mitigation: Any
    only: str | None


def note_mitigation(pipe: DiffusionPipeline, note: NotedMitigation) -> Callable[[], None]:
    """Note on a pipeline a mitigation that was applied to it; returns what removes the note."""
    notes: list[NotedMitigation] = vars(_carrier(pipe)).setdefault("_mitigations", [])
    notes.append(note)
    return lambda: notes.remove(note)


def mitigations_of(pipe: DiffusionPipeline) -> list[NotedMitigation]:
    """The mitigations that a pipeline carries now, in the order in which they were applied."""
    return list(vars(_carrier(pipe)).get("_mitigations", []))


def _carrier(pipe: DiffusionPipeline) -> Any:
    """The denoiser itself, which pipelines made of the same components share."""
    from diffkit.counting_copy import original_module

    denoisers = (getattr(pipe, name, None) for name in ("unet", "transformer"))
    return original_module(next((part for part in denoisers if part is not None), pipe))
