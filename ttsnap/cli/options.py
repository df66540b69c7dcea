"""The options that several commands of ttsnap share; those of every command are in diffkit.options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "CallCost",
    "CopyGuard",
    "HeldOut",
    "Index",
    "Negative",
    "RecordedRewards",
    "Steps",
    "TrajectoriesFolder",
    "VerifyCost",
]

Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Negative = Annotated[str | None, typer.Option(help="Negative prompt.")]
CopyGuard = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Pictures that no winner may copy; behind it :detector=sscd, :threshold=0.7, or none."
    ),
]
HeldOut = Annotated[
    str | None, typer.Option(help="Rewards that score the winners and select nothing; names separated by commas.")
]
TrajectoriesFolder = Annotated[Path, typer.Argument(help="A folder of `diffkit ttsnap collect`, with previews.")]
RecordedRewards = Annotated[str, typer.Argument(help="An .npz, published YAML folders, a collected folder, or lab.")]
CallCost = Annotated[float | None, typer.Option(min=0.0, help="Price of one denoiser call.")]
VerifyCost = Annotated[float | None, typer.Option(min=0.0, help="Price of one look, decoding included.")]
Index = Annotated[
    str | None,
    typer.Option(help="The rule that adaptive follows: lab, lab-trio, or a file of fit --rule index."),
]
