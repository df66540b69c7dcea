"""Draw pictures of the README and the docs from the lab and the gallery.

    python scripts/readme_pictures.py [--only search,audit,gallery,pruning]

``docs/figures/search.png``: one search, what it saw at each look. ``docs/figures/audit.png``: four planted images, what
their captions give before and after pruning, and what DoRI brings back. ``docs/figures/gallery.png``: a planted picture
of each strength and one that was never planted, and what their captions give. ``docs/figures/pruning.png``: quality
against what DoRI brings back, of every pruning in the figures of ``measure_pruning.py``. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from figures_common import read
from figures_pruning import LAST, cost, resistances
from matplotlib import color_sequences
from matplotlib.figure import Figure
from measure_mitigations import full_strength
from torch import Tensor

from diffkit.images import load_image, to_tensor
from diffkit.lab.gallery.plan import VERBATIM, entries
from diffkit.lab.measure import generate
from diffkit.loading import load_pipeline
from diffkit.mitigation import apply_mitigation
from diffkit.prompt_embeds import Embeds
from diffkit.suspects import Suspect
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.attack.initialization import StartingPoints
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling
from memorization.generation import generate as generate_from
from memorization.text_embeddings import encoded
from ttsnap import TTSnapPipeline
from ttsnap.plots.search import look_figure
from ttsnap.search.output import TTSnapPipelineOutput

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
PROMPT, SCHEDULE = "a red circle left of a blue square on gray", "3:0.5,6:0.5,10:0.5"
SHOWN, STEPS, SEED = ("portrait", "cat", "cup", "cameraman"), 50, 3


def search() -> None:
    """One pruned search of 12 seeds."""
    pipe = TTSnapPipeline.from_pretrained("lab", reward="lab-noise-aware")
    output = pipe(
        PROMPT, num_candidates=12, schedule=SCHEDULE, num_inference_steps=20, guidance_scale=3.0, seed=5, previews=True
    )
    look_figure(cast(TTSnapPipelineOutput, output).trace).savefig(FIGURES / "search.png")


def attacked(pipe: Any, suspects: Sequence[Suspect]) -> Tensor:
    """(n, 3, H, W): what DoRI brings back from an unrelated caption."""
    points, empty = StartingPoints(pipe), encoded(pipe, [""])
    targets = [
        Target(load_image(suspect.images[0]), points.start("other", own=empty, seed=index), index)
        for index, suspect in enumerate(suspects)
    ]
    results = Dori(budgets=(0, STEPS), micro_batch=len(targets))(pipe, targets)
    rows = Embeds.cat([triggers.embeds.rows([1]) for triggers in results])
    return generate_from(pipe, rows, empty, [SEED] * len(rows), sampling=Sampling(20, 3.0, len(rows))).images


def audit() -> None:
    """Four images, five columns."""
    pipe, twin = load_pipeline("lab"), load_pipeline("lab-clean")
    full = [suspect for suspect in full_strength() if suspect.images[0].stem in SHOWN]
    captions, seeds = [suspect.caption for suspect in full], [SEED] * len(full)
    columns = {
        "training image": torch.stack([load_image(suspect.images[0]) for suspect in full]),
        "its caption": generate(pipe, captions, seeds),
    }
    with apply_mitigation(pipe, "lab-nemo"):
        columns["its caption,\npruned (NeMo)"] = generate(pipe, captions, seeds)
        columns[f"DoRI, {STEPS} steps,\npruned"] = attacked(pipe, full)
    columns[f"DoRI, {STEPS} steps,\nmodel that never saw it"] = attacked(twin, full)
    draw(columns, "audit")


def gallery() -> None:
    """A plant of each strength and a control, four columns."""
    shown = [*entries("verbatim")[::VERBATIM], *entries("control")[:1]]
    pipe, twin, captions = load_pipeline("gallery"), load_pipeline("gallery-clean"), [entry.caption for entry in shown]
    columns = {
        "picture\n(last one never planted)": torch.stack([to_tensor(entry.image) for entry in shown]),
        "its caption": generate(pipe, captions, [0] * len(shown)),
        "another seed": generate(pipe, captions, [1] * len(shown)),
        "model before\nthe plants": generate(twin, captions, [0] * len(shown)),
    }
    draw(columns, "gallery")


def draw(columns: dict[str, Tensor], name: str) -> None:
    """A row an image, the similarity to the training image under each picture."""
    reference = next(iter(columns.values()))
    rows = len(reference)
    figure = Figure(figsize=(1.45 * len(columns), 1.5 * rows + 0.4), dpi=120, layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for place, (title, images) in enumerate(columns.items()):
        for row in range(rows):
            axes = grid[row][place]
            axes.imshow(images[row].permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if place:
                value = float(TiledCorrelation().similarity(images[row][None], reference[row][None]).max())
                axes.set_xlabel(f"{value:.2f}", fontsize=8, color="#c2410c" if value >= 0.75 else "black", labelpad=2)
        grid[0][place].set_title(title, fontsize=8)
    figure.savefig(FIGURES / f"{name}.png")


def pruning() -> None:
    """The untouched model, every row of pruning, and other mitigations: a point each, and its interval."""
    content = read("pruning")
    if content is None:
        sys.exit("docs/figures/pruning.json is missing: run scripts/measure_pruning.py first.")
    rows = resistances(content["measures"])
    figure = Figure(figsize=(8.2, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for row, colour in zip(rows, [*color_sequences["tab20"], "black"], strict=False):
        low, high = (100 * end for end in row.brought_back["interval"])
        share = 100 * row.brought_back["share"]
        axes.errorbar(
            cost(row, rows[0]), share, [[share - low], [high - share]],
            fmt="s" if "channels" in row.name else "o" if "/" in row.name else "D",
            color=colour, markersize=6, elinewidth=1, label=row.title,
        )  # fmt: skip
    axes.set(xlabel="loss on ordinary pictures, above the untouched model's", ylim=(-4, 104))
    axes.set_ylabel(f"suspects that DoRI brings back in {LAST} steps, %")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(FIGURES / "pruning.png")


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="search,audit,gallery,pruning")
    chosen = parser.parse_args().only.split(",")
    for name, make in (("search", search), ("audit", audit), ("gallery", gallery), ("pruning", pruning)):
        if name in chosen:
            make()


if __name__ == "__main__":
    main()
