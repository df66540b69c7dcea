"""``diffkit demo``: both jobs on the lab, each by the package that does it.

A package takes part by an entry point of the group ``diffkit.demos``: a function from a folder to a
:class:`Demonstration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from diffkit import console
from diffkit.options import Debug
from diffkit.registry import Registry


@dataclass(frozen=True)
class Demonstration:
    """Result of a demonstration: a table, and the paths of its pictures and reports."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    files: Sequence[tuple[str, Path]]


demos: Registry[Callable[[Path], Demonstration]] = Registry(
    "demonstration",
    "diffkit.demos",
    {"ttsnap": "ttsnap.demo:demonstrate", "memorization": "memorization.demo:demonstrate"},
)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder for pictures and reports.")] = Path(
        "runs/demo"
    ),
    debug: Debug = False,
) -> None:
    """Both jobs on the lab, in a few minutes: a seed search that prunes, an audit that finds what pruning hides."""
    shown = []
    for name in reversed(demos.names()):
        shown.append(demos.get(name)(out / name))
    for part in shown:
        console.write_table(part.headers, part.rows, title=part.title)
        for label, path in part.files:
            print(f"  {label}: {path}")
        print()
