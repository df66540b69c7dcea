"""Published findings on memorization, measured again on a gallery: detectors, pruning, DoRI, adversarial fine-tuning.

    python scripts/measure_replication.py --gallery runs/gallery [--device cuda] [--out runs/replication]
        [--only captions,detectors,none,nemo,wanda,adversarial] [--limit 64] [--json docs/figures/replication.json]

The gallery is made by ``diffkit lab train --lab gallery``. Suspects are its verbatim plants, the strongest first;
never-trained images are its controls, never-trained captions those of its controls and claims. A run goes on where it
was cut.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.families import Pipeline
from diffkit.images import load_image
from diffkit.lab.measure import accuracy_change, scene_accuracy
from diffkit.lab.world import held_out_scenes
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import apply_mitigation
from diffkit.runs import Run
from diffkit.seeds import item_seed
from diffkit.stats import Rate, auc, rate
from diffkit.suspects import Suspect, read_suspects
from memorization.attack.base import Target
from memorization.attack.dori import Dori
from memorization.attack.initialization import Start, StartingPoints
from memorization.copies.tiled import TiledCorrelation
from memorization.detection import make_detector
from memorization.detection.calibrate import calibrate_detector
from memorization.detection.score_captions import score_by_all
from memorization.generation import Sampling, generate
from memorization.mitigation.run import mitigate

COPY, SEEDS, TRIES = 0.75, 3, 3
STARTS: tuple[Start, ...] = ("other", "gaussian")
BUDGETS, CONTROL_BUDGETS = (0, 10, 50), (0, 50, 150, 500)
DETECTORS = (
    "noise_magnitude:steps=1",
    "noise_magnitude",
    "anisotropy",
    "sharpness",
    "attention_entropy",
    "bright_ending",
)
METHODS: dict[str, dict[str, Any]] = {
    "nemo": {},
    "wanda": {"sparsity": (0.01, 0.02, 0.05, 0.1, 0.2)},
    "adversarial": {"updates": 500, "learning_rate": 2e-4, "adversarial_weight": 0.5, "num_inference_steps": 20},
}
ORDER = ("full", "high", "medium", "weak")


class Gallery:
    """The folder's models, pictures and captions.

    Args:
        folder: as ``diffkit lab train --lab gallery`` leaves it.
        limit: suspects, and as many controls.
    """

    def __init__(self, folder: Path, device: str, limit: int) -> None:
        self.folder, self.device = folder, device
        planted = read_suspects(folder / "planted")[0]
        verbatim = [suspect for suspect in planted if suspect.kind == "verbatim"]
        self.suspects = sorted(verbatim, key=lambda suspect: ORDER.index(str(suspect.extra["strength"])))[:limit]
        self.templates = [suspect for suspect in planted if suspect.kind == "template"][:limit]
        self.controls = read_suspects(folder / "controls")[0]
        self.claims = read_suspects(folder / "claims")[0]
        self.ordinary = (folder / "ordinary.txt").read_text().splitlines()
        self.batch = 256 if device != "cpu" else 16

    @cached_property
    def model(self) -> Pipeline:
        """The model with the plants."""
        return self.load("gallery")

    def load(self, name: str) -> Pipeline:
        """One of the two models, in float32."""
        pipe = load_pipeline(str(self.folder / name), dtype="float32", device=self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def likeness(self, images: Tensor, suspect: Suspect) -> float:
        """Median over images of the similarity to the suspect's image."""
        similarity = TiledCorrelation().similarity(images.cpu(), load_image(suspect.images[0])[None])
        return float(similarity.amax(1).median())

    def by_caption(self, pipe: Pipeline, items: Sequence[Suspect]) -> list[float]:
        """What each caption alone gives."""
        rows = encode_prompts(pipe, [item.caption for item in items], guidance=False).prompt_embeds
        empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
        seeds = list(range(SEEDS)) * len(items)
        sampling = Sampling(20, 3.0, min(self.batch, len(seeds)))
        images = generate(pipe, rows.repeat_interleave(SEEDS, 0), empty, seeds, sampling=sampling).images
        return [self.likeness(part, item) for part, item in zip(images.split(SEEDS), items, strict=True)]

    def attacked(self, pipe: Pipeline, items: Sequence[Suspect], budgets: tuple[int, ...]) -> dict[str, Any]:
        """By DoRI from two starts: what the better of both brings back, at each budget above 0."""
        points, empty = StartingPoints(pipe, self.ordinary[:8]), encode_prompts(pipe, [""], guidance=False)
        own, targets = torch.zeros_like(empty.prompt_embeds[0]), list[Target]()  # only the "prompt" start uses its own
        for item in items:
            for start in STARTS:
                seed = item_seed(0, item.id, f"attack:{start}")
                targets.append(Target(load_image(item.images[0]), points.start(start, own=own, seed=seed), seed))
        triggers = Dori(budgets=budgets, micro_batch=min(self.batch // 4, len(targets)))(pipe, targets)
        return {
            str(budget): self._shown(pipe, items, [trigger.embeddings[look] for trigger in triggers])
            for look, budget in enumerate(budgets)
            if budget
        }

    def _shown(self, pipe: Pipeline, items: Sequence[Suspect], rows: Sequence[Tensor]) -> dict[str, Any]:
        empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
        seeds = list(range(TRIES)) * len(rows)
        sampling = Sampling(20, 3.0, min(self.batch, len(seeds)))
        embeds = torch.stack(list(rows)).repeat_interleave(TRIES, 0).to(pipe.device)
        images = generate(pipe, embeds, empty, seeds, sampling=sampling).images.split(TRIES)
        each = [self.likeness(part, items[index // len(STARTS)]) for index, part in enumerate(images)]
        best = [max(pair) for pair in zip(each[::2], each[1::2], strict=True)]
        return share(best) | {start: share(each[place::2]) for place, start in enumerate(STARTS)}


def share(values: Sequence[float]) -> dict[str, Any]:
    """Copies among similarities, with n, interval and median."""
    return {**rate(sum(value >= COPY for value in values), len(values)), "median": median(values)}


def captions(gallery: Gallery) -> dict[str, Any]:
    """How many captions give their picture: plants by strength, templates, controls; the same from the twin."""
    clean, row = gallery.load("gallery-clean"), {}
    for strength in ORDER:
        items = [item for item in gallery.suspects if item.extra["strength"] == strength]
        if items:
            row[f"verbatim, {strength}"] = share(gallery.by_caption(gallery.model, items))
    for name, items in (("templates", gallery.templates), ("controls", gallery.controls)):
        row[name] = share(gallery.by_caption(gallery.model, items))
    return row | {"the twin, verbatim": share(gallery.by_caption(clean, gallery.suspects))}


def detectors(gallery: Gallery) -> dict[str, Any]:
    """AUC and the share found at 1 % false alarms: threshold from one half of the captions, share from the other."""
    groups = {
        "plants": [item.caption for item in gallery.suspects],
        "never": [item.caption for item in (*gallery.controls, *gallery.claims)],
        "scenes": [scene.caption for scene in held_out_scenes(40, seed=5)],
    }
    every = [caption for captions in groups.values() for caption in captions]
    sampling = Sampling(20, 3.0, min(gallery.batch, 128))
    rows: dict[str, Any] = {}
    for name in DETECTORS:
        detector = {name: make_detector(name)}
        scored = score_by_all(gallery.model, every, detector, [[0, 1]] * len(every), sampling=sampling)[name]
        reasons = [score.reason for score in scored if score.reason]
        scores = [score.value for score in scored if score.value is not None]
        rows[name] = {"could not be scored": reasons[0]} if reasons else detector_row(name, scores, groups)
    return rows


def detector_row(name: str, scores: Sequence[float], groups: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One detector's figures from the scores of all groups, in their order."""
    plants, never = scores[: len(groups["plants"])], scores[len(groups["plants"]) : -len(groups["scenes"])]
    fitted = calibrate_detector(plants[::2], never[::2], detector=name, fpr=0.01)

    def flagged(values: Sequence[float]) -> Rate:
        return rate(sum(fitted.threshold.flags(value) for value in values), len(values))

    return {
        "auc": auc(plants, never),
        "n": [len(plants), len(never)],
        "auc on the other half": auc(plants[1::2], never[1::2]),
        "found on the other half": flagged(plants[1::2]),
        "false alarms there": flagged(never[1::2]),
        "auc against exact scenes": auc(plants, scores[-len(groups["scenes"]) :]),
    }


def unmitigated(gallery: Gallery) -> dict[str, Any]:
    """DoRI on the model as it is, on its twin, and on never-trained pictures by the budget."""
    never = gallery.controls[: len(gallery.suspects)]
    return {
        "suspects": gallery.attacked(gallery.model, gallery.suspects, BUDGETS),
        "suspects, from the twin": gallery.attacked(gallery.load("gallery-clean"), gallery.suspects, BUDGETS),
        "never trained": gallery.attacked(gallery.model, never, CONTROL_BUDGETS),
    }


def mitigated(gallery: Gallery, method: str, out: Path) -> dict[str, Any]:
    """Captions and scenes under a mitigation of all suspects, and what DoRI brings back."""
    setting = "retention" if method == "adversarial" else "captions"
    ordinary = {setting: str(gallery.folder / "ordinary.txt")}
    pipe = gallery.load("gallery")
    before = scene_accuracy(pipe)
    made = mitigate(pipe, gallery.suspects, method, out=out, settings=METHODS[method] | ordinary, name="gallery")
    with apply_mitigation(pipe, made):
        return {
            "settings": METHODS[method],
            "figures": {key: value for key, value in made.figures.items() if key != "by suspect"},
            "captions": share(gallery.by_caption(pipe, gallery.suspects)),
            "scenes": accuracy_change(before, scene_accuracy(pipe)),
            "dori": gallery.attacked(pipe, gallery.suspects, BUDGETS),
            "never trained": gallery.attacked(pipe, gallery.controls[: len(gallery.suspects)], BUDGETS),
        }


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--out", type=Path, default=Path("runs/replication"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--only", default="captions,detectors,none,nemo,wanda,adversarial")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gallery = Gallery(options.gallery, options.device, options.limit)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "captions": lambda: captions(gallery),
        "detectors": lambda: detectors(gallery),
        "none": lambda: unmitigated(gallery),
        **{name: partial(mitigated, gallery, name, options.out / name) for name in METHODS},
    }
    config = {"model": model_checksum(str(options.gallery / "gallery")), "limit": options.limit, "methods": METHODS}
    with Run.open(options.out, config=json.loads(json.dumps(config)), kind="measure-replication") as run:
        for name in options.only.split(","):
            if name not in run.done:
                run.write(name, measures[name]())
                print(name, json.dumps(run.done[name]), flush=True)
        text = json.dumps({"copy from": COPY, "starts": STARTS, **run.done}, indent=1)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
