"""The options that a pipeline was loaded with, noted on it, so that every run records them alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["changes_of", "note_changes", "note_options", "options_of"]


def note_options(pipe: DiffusionPipeline, **options: object) -> None:
    """Note on a pipeline the options that changed how it was loaded; those that are None are not noted."""
    vars(pipe)["_loading_options"] = {name: str(value) for name, value in options.items() if value is not None}


def options_of(pipe: DiffusionPipeline) -> dict[str, str]:
    """What beyond the model's name a pipeline was loaded with: ``variant``, ``model_config``, ``scheduler``.

    They belong into the configuration of a run. Empty without any, so that runs of earlier versions resume.
    """
    return dict(vars(pipe).get("_loading_options", {}))


def note_changes(pipe: DiffusionPipeline, **changes: object) -> None:
    """Note on a pipeline what its weights were changed by when it was loaded; what is None is not noted."""
    vars(pipe)["_loading_changes"] = {name: str(value) for name, value in changes.items() if value is not None}


def changes_of(pipe: DiffusionPipeline) -> dict[str, str]:
    """The ``mitigation`` and the ``lora`` that a pipeline was loaded with; empty without any."""
    return dict(vars(pipe).get("_loading_changes", {}))
