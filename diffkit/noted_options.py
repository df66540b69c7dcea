"""The options that a pipeline was loaded with, noted on it, so that every run records them alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["note_options", "options_of"]


def note_options(pipe: DiffusionPipeline, **options: object) -> None:
    """Note on a pipeline the options that changed how it was loaded; those that are None are not noted."""
    vars(pipe)["_loading_options"] = {name: str(value) for name, value in options.items() if value is not None}


def options_of(pipe: DiffusionPipeline) -> dict[str, str]:
    """What beyond the model's name a pipeline was loaded with: ``variant``, ``model_config``, ``scheduler``.

    They belong into the configuration of a run. Empty without any, so that runs of earlier versions resume.
    """
    return dict(vars(pipe).get("_loading_options", {}))
