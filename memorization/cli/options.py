"""The options that several commands of memorization share; those of every command are in diffkit.options."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["LimitControls", "Steps", "Suspects"]

Suspects = Annotated[
    str,
    typer.Option(
        "--suspects", "-s", help="lab:planted, gallery:planted, a folder, a .csv, .jsonl or .txt of captions."
    ),
]
LimitControls = Annotated[int | None, typer.Option(min=0, help="Take only the first so many controls.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps of each image.")]
