"""What NeMo, Wanda and two guards do to the lab: captions, scene accuracy, and what DoRI brings back afterwards.

    python scripts/measure_mitigations.py [--out runs/mitigations] [--only best] [--json docs/figures/mitigations.json]

Suspects are the 8 verbatim images planted at full strength. Every setting is measured as one union mask, and as
published, each suspect under its own mask. Resumes where it was cut; ``--only best`` leaves the sweep out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.families import Pipeline
from diffkit.images import load_image
from diffkit.lab import planted, world
from diffkit.lab.measure import accuracy_change, generate, scene_correct
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.runs import Run
from diffkit.seeds import item_seed
from diffkit.stats import clopper_pearson
from diffkit.suspects import Suspect, read_suspects
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.attack.initialization import StartingPoints
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling
from memorization.generation import generate as generate_from
from memorization.mitigation import methods
from memorization.mitigation.run import mitigate
from memorization.presets import LAB

THRESHOLD = 0.75  # the audit's operating point
SEEDS, SCENES, SCENE_SEEDS = 5, 40, 4
STARTS, BUDGET, TRIES = ("other", "gaussian"), 50, 3
#: Name -> method, settings, and whether each suspect is generated and attacked under its own mask (as NeMo's authors
#: evaluate) or all under the union. Wanda's union is never gentle enough on the lab.
BEST: dict[str, tuple[str, dict[str, Any], Literal["union", "per suspect"]]] = {
    "nemo": ("nemo", dict(LAB.methods["nemo"]), "union"),
    "wanda": ("wanda", dict(LAB.methods["wanda"]), "per suspect"),
}


def sweep() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> method and settings."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for fill in ("mean", "zero"):
        rows[f"nemo as published, {fill}"] = ("nemo", {"fill": fill})
        for theta in (3.0, 2.5, 2.25, 2.0):
            fixed = {"theta": theta, "smallest_theta": theta, "check": False, "refine": False, "fill": fill}
            rows[f"nemo theta {theta}, {fill}"] = ("nemo", fixed)
        for sparsity in (0.01, 0.05, 0.1, 0.2, 0.3):
            rows[f"wanda {sparsity:.0%}, {fill}"] = ("wanda", {"sparsity": (sparsity,), "fill": fill})
    rows["wanda as published (1 %, base empty, zero)"] = (
        "wanda",
        {"sparsity": (0.01,), "base": "empty", "fill": "zero"},
    )
    rows["wanda 10%, base empty, mean"] = ("wanda", {"sparsity": (0.1,), "base": "empty", "fill": "mean"})
    rows["attention guard 1.25"] = ("attention-guard", {"factor": 1.25})
    rows["attention guard 1.5"] = ("attention-guard", {"factor": 1.5})
    rows["prompt guard"] = ("prompt-guard", {})
    rows["prompt guard, 50 iterations to nearly 0"] = ("prompt-guard", {"target": 0.01, "iterations": 50})
    return rows


def full_strength() -> list[Suspect]:
    """The verbatim images planted at full strength."""
    strength = {p.name: p.strength for p in planted.PHOTOGRAPHS if p.kind == "verbatim"}
    return [s for s in read_suspects("lab:planted")[0] if strength.get(s.images[0].stem) == "full"]


def likeness(images: Tensor, suspect: Suspect) -> float:
    """Median over images of the similarity to the suspect's image."""
    reference = load_image(suspect.images[0])[None]
    return statistics.median(TiledCorrelation().similarity(images, reference).amax(1).tolist())


def by_caption(pipe: Pipeline, suspect: Suspect) -> float:
    """The similarity that the caption alone gives."""
    return likeness(generate(pipe, [suspect.caption] * SEEDS, list(range(SEEDS))), suspect)


def scenes(pipe: Pipeline, rows: slice = slice(None)) -> Tensor:
    """(n, SCENE_SEEDS) of 0 and 1: which images of held-out scenes are right."""
    captions = [scene.caption for scene in world.held_out_scenes(SCENES, seed=5)[rows] for _ in range(SCENE_SEEDS)]
    seeds = list(range(SCENE_SEEDS)) * (len(captions) // SCENE_SEEDS)
    return scene_correct(generate(pipe, captions, seeds), captions).view(-1, SCENE_SEEDS)


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """k of n with its exact 95 % interval."""
    low, high = clopper_pearson(sum(hits), len(hits))
    return {"k": sum(hits), "n": len(hits), "share": sum(hits) / len(hits), "low": low, "high": high}


def effect(pipe: Pipeline, made: Mitigation, suspects: Sequence[Suspect], before: Tensor) -> dict[str, Any]:
    """Captions and scene accuracy, under the union and under each suspect's own mask."""
    with apply_mitigation(pipe, made):
        together = {suspect.id: by_caption(pipe, suspect) for suspect in suspects}
        union = accuracy_change(before, scenes(pipe))
    figures = {"figures": {k: v for k, v in made.figures.items() if k != "by suspect"}, "union": _row(together, union)}
    if not made.parts():
        return figures
    alone, after = {}, []
    parts = [part.tolist() for part in torch.arange(SCENES).chunk(len(suspects))]
    for suspect, rows in zip(suspects, parts, strict=True):
        own = suspect.id if suspect.id in made.parts() else None
        with apply_mitigation(pipe, made if own else _nothing(made), only=own):
            alone[suspect.id] = by_caption(pipe, suspect)
            after.append(scenes(pipe, slice(rows[0], rows[-1] + 1)))
    return figures | {"per suspect": _row(alone, accuracy_change(before, torch.cat(after)))}


def _nothing(made: Mitigation) -> Mitigation:
    """For a suspect in which the method found nothing to switch off."""
    return Mitigation(method=made.method, kind="mask", model=made.model, tensors={})


def _row(similarity: Mapping[str, float], accuracy: Mapping[str, Any]) -> dict[str, Any]:
    hits = [value >= THRESHOLD for value in similarity.values()]
    return {"replicated by caption": share(hits), "similarity": dict(similarity), "scene accuracy": accuracy}


def attacked(pipe: Pipeline, items: Sequence[Suspect], role: str) -> dict[str, dict[str, float]]:
    """Similarity that DoRI reaches: start -> id -> median over images."""
    points = StartingPoints(pipe, [scene.caption for scene in world.training_scenes(8, seed=2024)])
    negative, targets = encode_prompts(pipe, [""], guidance=False).prompt_embeds, []
    for item in items:
        for start in STARTS:
            seed = item_seed(0, f"{role}:{item.id}", f"attack:{start}")
            own = torch.zeros_like(negative[0])  # only the "prompt" start would use it
            targets.append(Target(load_image(item.images[0]), points.start(start, own=own, seed=seed), seed))
    results = Dori(budgets=(0, BUDGET), micro_batch=min(8, len(targets)))(pipe, targets)
    rows = torch.stack([triggers.embeddings[-1] for triggers in results]).repeat_interleave(TRIES, 0)
    seeds = [item_seed(0, f"{role}:{item.id}", "evaluate", i) for item in items for _ in STARTS for i in range(TRIES)]
    images = generate_from(pipe, rows, negative, seeds, sampling=Sampling(20, 3.0, min(16, len(seeds)))).images
    result: dict[str, dict[str, float]] = {start: {} for start in STARTS}
    for (item, start), made in zip(itertools.product(items, STARTS), images.split(TRIES), strict=True):
        result[start][item.id] = likeness(made, item)
    return result


def attacked_under(
    pipe: Pipeline, made: Mitigation, how: str, items: Sequence[Suspect], role: str
) -> dict[str, dict[str, float]]:
    """:func:`attacked` under the union, or each suspect under its own mask and the controls under them in turn."""
    if how == "union":
        with apply_mitigation(pipe, made):
            return attacked(pipe, items, role)
    similarity: dict[str, dict[str, float]] = {start: {} for start in STARTS}
    for index, name in enumerate(made.suspects):
        with apply_mitigation(pipe, made, only=name):
            part = attacked(pipe, [i for i in items if i.id == name] or items[index :: len(made.suspects)], role)
        for start in STARTS:
            similarity[start] |= part[start]
    return similarity


def brought_back(similarity: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The share of items that DoRI brings to the threshold: from each start, and from the better of all."""
    best = {key: max(row[key] for row in similarity.values()) for key in similarity[STARTS[0]]}
    each = {start: share([value >= THRESHOLD for value in row.values()]) for start, row in similarity.items()}
    return {
        "brought back": share([value >= THRESHOLD for value in best.values()]),
        "from each start": each,
        "similarity": {start: dict(row) for start, row in similarity.items()},
    }


def measure(run: Run, *, best_only: bool) -> None:
    """Everything that is not in the journal yet."""
    pipe, suspects = load_pipeline("lab"), full_strength()
    controls = read_suspects("lab:controls")[0]

    def make(name: str, method: str, settings: dict[str, Any]) -> Mitigation:
        chosen = methods.get(method)
        return mitigate(
            pipe,
            suspects,
            method=chosen,
            out=run.folder / "masks" / name.replace(" ", "-").replace("%", "pc"),
            name="lab",
            settings=chosen.settings(**settings),
            model_sha256=model_checksum("lab"),
        )

    if "before" not in run.done:
        similarity = {suspect.id: by_caption(pipe, suspect) for suspect in suspects}
        hits = share([value >= THRESHOLD for value in similarity.values()])
        run.write("before", {"captions": hits, "similarity": similarity, "scenes": scenes(pipe).tolist()})
    before = torch.tensor(run.done["before"]["scenes"])
    for name, (method, settings, how) in BEST.items():
        if f"best {name}" not in run.done:
            figures = effect(pipe, make(f"best {name}", method, settings), suspects, before)
            run.write(f"best {name}", {"settings": settings, "best as": how, **figures})
    for role, items in (("suspect", suspects), ("control", controls)):
        for name, (method, settings, how) in BEST.items():
            if f"attack {name} {role}" not in run.done:
                figures = attacked_under(pipe, make(f"best {name}", method, settings), how, items, role)
                run.write(f"attack {name} {role}", brought_back(figures))
        for model in ("lab", "lab-clean") if role == "suspect" else ():
            if f"attack {model} {role}" not in run.done:
                run.write(f"attack {model} {role}", brought_back(attacked(load_pipeline(model), items, role)))
    for name, (method, settings) in {} if best_only else sweep().items():
        if name not in run.done:
            figures = effect(pipe, make(name, method, settings), suspects, before)
            run.write(name, {"method": method, "settings": settings, **figures})


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/mitigations"))
    parser.add_argument("--only", choices=["best"], help="leave the sweep out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = {
        "model": model_checksum("lab"),
        "clean": model_checksum("lab-clean"),
        "best": {name: [settings, how] for name, (_, settings, how) in BEST.items()},
        "n": [SEEDS, SCENES, SCENE_SEEDS, BUDGET, TRIES],
    }
    with Run.open(options.out, config=config, kind="measure-mitigations") as run:
        measure(run, best_only=options.only == "best")
        figures = {"threshold": THRESHOLD, "seeds per caption": SEEDS, "attack": {"steps": BUDGET, "starts": STARTS}}
        text = json.dumps(figures | dict(run.done), indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
