"""The options every command shares, so that they read and behave the same everywhere.

Use them as annotations and give the default in the signature::

    def audit(model: Model = "lab", seed: Seed = 0, out: Out = None, debug: Debug = False) -> None: ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "DEBUG_KEY",
    "Debug",
    "Device",
    "DryRun",
    "Dtype",
    "Format",
    "Guidance",
    "Limit",
    "Lora",
    "MicroBatch",
    "Mitigation",
    "Model",
    "ModelConfig",
    "Out",
    "Preset",
    "PreviewVae",
    "Revision",
    "Scheduler",
    "Seed",
    "Variant",
]

DEBUG_KEY = "diffkit.debug"  # in the context's `meta`, which a command shares with its parents


def _remember_debug(context: typer.Context, value: bool) -> bool:
    if value:
        context.meta[DEBUG_KEY] = True
    return value


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="lab, gallery or another shipped model, a folder in diffusers' format, a .safetensors file, a hub id.",
    ),
]
Variant = Annotated[
    str | None,
    typer.Option("--variant", help="Of the weights, e.g. fp16; default: the plain ones, or the only one there is."),
]
ModelConfig = Annotated[
    str | None,
    typer.Option("--config", help="For a model in one file: a folder or hub id with its family's settings."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="NAME[:KEY=VALUE,...]",
        help="Instead of the model's own: ddim, euler-a, unipc, ...",
    ),
]
Mitigation = Annotated[
    Path | None,
    typer.Option(
        "--mitigation",
        file_okay=False,
        help="A mitigation to put on the model: a folder of `diffkit mitigate`, or lab-nemo (shipped, for lab).",
    ),
]
Lora = Annotated[
    str | None,
    typer.Option("--lora", help="A fine-tune to put on the model: a .safetensors file, a folder with one, a hub id."),
]
Revision = Annotated[str | None, typer.Option("--revision", help="Commit, tag or branch of a hub id.")]
Dtype = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option("--dtype", help="Precision; auto is float32 on a CPU, else the checkpoint's own."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The run's seed; everything random follows from it.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Take only the first so many items.")]
Guidance = Annotated[float, typer.Option(min=0.0, help="Guidance scale.")]
MicroBatch = Annotated[
    str, typer.Option("--micro-batch", metavar="N|auto", help="How many run at once; auto: the most that fit.")
]  # read by diffkit.micro_batch.read_micro_batch
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", file_okay=False, help="The run's folder; the same command resumes there."),
]
Preset = Annotated[
    Literal["auto", "lab", "gallery", "none"],
    typer.Option(
        "--preset", help="Defaults for a family of models; auto: lab or gallery for the models of these, else none."
    ),
]
PreviewVae = Annotated[
    str | None,
    typer.Option("--preview-vae", help="A small decoder for estimates: an AutoencoderTiny's folder or hub id, or lab."),
]
Format = Annotated[Literal["table", "json"], typer.Option("--format", help="How the result is written to stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the input, say what would be done, and stop.")]
Debug = Annotated[bool, typer.Option("--debug", callback=_remember_debug, help="Show the traceback of an error.")]
