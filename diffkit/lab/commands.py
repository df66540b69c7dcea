"""``diffkit lab``: what the lab is and does, and how to make it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from diffkit import console
from diffkit.errors import InputError
from diffkit.options import Debug, Format

LabName = Literal["lab", "gallery"]
Lab = Annotated[LabName, typer.Option("--lab", help="lab, or gallery: few memories among many pictures.")]
app = typer.Typer(
    help="The lab and the gallery: tiny, real Stable Diffusions with planted memories, and their twins without.",
    no_args_is_help=True,
)


@app.command()
def info(lab: Lab = "lab", format: Format = "table", debug: Debug = False) -> None:
    """Print the card: every measured figure of the lab or the gallery, with n and intervals."""
    import json

    from diffkit.lab.assets import card_path

    card = json.loads(card_path(lab).read_text())
    if format == "json":
        console.write_json(card)
    else:
        console.write_table(("figure", "value", "n", "95 % interval"), list(card_rows(card)), title=f"The {lab}'s card")


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoints and results.")] = Path("runs/lab"),
    lab: Lab = "lab",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where the gallery is trained, such as cuda.")] = "cpu",
    debug: Debug = False,
) -> None:
    """Train a lab from nothing (hours on two cores); the same command goes on after a kill."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    card = _make(lab, out, seed, device)
    console.say(f"The models and card.json are in {out}.")
    console.write_table(("figure", "value", "n", "95 % interval"), list(card_rows(card)), title=f"The {lab}'s card")


def _make(lab: LabName, out: Path, seed: int, device: str) -> dict[str, Any]:
    if lab == "gallery":
        from diffkit.lab.gallery.make import make_gallery

        return make_gallery(out, seed=seed, device=device)
    if device != "cpu":
        raise InputError(f"The lab is trained on the processor; --device {device} is for --lab gallery.")
    from diffkit.lab.make import make_lab

    return make_lab(out, seed=seed)


def card_rows(card: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Flatten the card to rows (figure, value, n, interval)."""
    for name, value in card.items():
        label = f"{path} › {name}" if path else name
        if not isinstance(value, Mapping):
            yield label, _number(value), "", ""
        elif "low" in value:
            figure = value.get("rate", value.get("mean"))
            yield label, _number(figure), str(value["n"]), f"{_number(value['low'])} – {_number(value['high'])}"
            rest = {key: v for key, v in value.items() if key not in ("rate", "mean", "n", "low", "high")}
            yield from card_rows(rest, label)
        else:
            yield from card_rows(value, label)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
