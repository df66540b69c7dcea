"""A pipeline from what a public function is given: a model's name or a loaded pipeline."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from diffkit.families import Pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["NamedPipeline", "dtype_name", "name_of", "named_pipeline", "pipeline_identity"]


class NamedPipeline(NamedTuple):
    """A pipeline, and what a run's record states about it: the model's name, and its checksum if known."""

    pipe: Pipeline
    name: str
    sha256: str | None


def named_pipeline(model: str | DiffusionPipeline, name: str | None = None, sha256: str | None = None) -> NamedPipeline:
    """Load a model by its name, or take a pipeline as it is.

    Args:
        model: a name that :func:`diffkit.load_pipeline` takes, or a pipeline of a known family.
        name: for the record; None = the name by which it was loaded.
        sha256: checksum of the weights; None = computed for a shipped or local model that is loaded here.
    """
    from diffkit.loading import load_pipeline, model_checksum

    if isinstance(model, str):
        return NamedPipeline(load_pipeline(model), name or model, sha256 or model_checksum(model))
    return NamedPipeline(model, name or name_of(model), sha256)


def name_of(pipe: DiffusionPipeline) -> str:
    """The name by which a pipeline was loaded, else that of its class."""
    return str(pipe.config.get("_name_or_path") or type(pipe).__name__)


def pipeline_identity(pipe: DiffusionPipeline) -> dict[str, Any]:
    """What tells a pipeline that somebody has made from others, for a run's configuration; JSON values.

    The class of its denoiser, its name, its scheduler with the settings, and the mitigations and the LoRA it carries.
    Weights are not read.
    """
    from hashlib import sha256

    from diffkit.counting_copy import original_module
    from diffkit.families import pipe_denoiser
    from diffkit.lora import lora_digest
    from diffkit.mitigation.record import recorded_checksum

    scheduler = pipe.scheduler
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    text = json.dumps(settings, sort_keys=True, default=str)
    mitigation = recorded_checksum(pipe)
    return {
        "denoiser": type(original_module(pipe_denoiser(pipe))).__name__,
        "model": name_of(pipe),
        "scheduler": f"{type(scheduler).__name__} {sha256(text.encode()).hexdigest()[:16]}",
        **({} if mitigation is None else {"mitigation": mitigation}),
        **lora_digest(pipe),
    }


def dtype_name(pipe: DiffusionPipeline) -> str:
    """The precision in which a pipeline computes, for a run's configuration: "float16".

    Where components differ, the rest is named too: "float16, vae float32".
    """
    from torch.nn import Module

    precisions = {
        name: str(part.dtype).removeprefix("torch.")
        for name, part in pipe.components.items()
        if isinstance(part, Module) and hasattr(part, "dtype")
    }
    own = str(pipe.dtype).removeprefix("torch.")
    return ", ".join([own, *(f"{name} {other}" for name, other in sorted(precisions.items()) if other != own)])
