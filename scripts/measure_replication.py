"""Published findings on memorization, measured again on the gallery: detectors, pruning, DoRI, adversarial fine-tuning.

    python scripts/measure_replication.py [--models runs/gallery] [--device cuda] [--out runs/replication]
        [--only captions,detectors,nemo] [--limit 64] [--json docs/figures/replication.json]

Suspects are the gallery's verbatim plants, the strongest first; never-trained images are its controls, never-trained
captions those of its controls and claims. The models are the shipped ones, or those of a folder that ``diffkit lab
train --lab gallery`` made. Measures that the JSON holds are not made again: a killed run goes on, and processes with
different ``--only`` may run side by side.
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
from measures import Measures
from torch import Tensor, nn

from diffkit.conditioning import encode_prompts
from diffkit.families import Pipeline
from diffkit.images import load_image
from diffkit.lab.gallery.captions import ordinary_captions
from diffkit.lab.gallery.ordinary import ordinary_pictures
from diffkit.lab.measure import accuracy_change, scene_accuracy
from diffkit.lab.world import held_out_scenes
from diffkit.loading import load_pipeline, model_checksum
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.rewards.lab import LabReward
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
from memorization.quality.report import compare_snapshots
from memorization.quality.settings import QualitySettings
from memorization.quality.snapshots import Snapshot, Validation, snapshot

COPY, SEEDS, TRIES = 0.75, 3, 3
STARTS: tuple[Start, ...] = ("other", "gaussian")
BUDGETS, LONG_BUDGETS, LONG = (0, 10, 50), (0, 50, 150, 500), 24  # the long ones for so many controls
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
    "adversarial": {},
    "prompt-guard": {},
    "attention-guard": {},
}
ORDER = ("full", "high", "medium", "weak")
FIRST_HELD_OUT = 2_000_000  # seed of ordinary pictures that no model was trained on


class Gallery:
    """Models, suspects and never-trained pictures.

    Args:
        folder: with the two models; None takes the shipped ones.
        limit: suspects, and as many controls.
    """

    def __init__(self, folder: Path | None, device: str, limit: int) -> None:
        self.folder, self.device, self.limit = folder, device, limit
        planted = read_suspects("gallery:planted")[0]
        verbatim = [suspect for suspect in planted if suspect.kind == "verbatim"]
        self.every = sorted(verbatim, key=lambda suspect: ORDER.index(str(suspect.extra["strength"])))
        self.suspects = self.every[:limit]
        self.templates = [suspect for suspect in planted if suspect.kind == "template"]
        self.controls = read_suspects("gallery:controls")[0]
        self.claims = read_suspects("gallery:claims")[0]
        self.other_captions = tuple(ordinary_captions(8))  # where the start "other" of an attack begins
        self.batch = 256 if device != "cpu" else 16

    def path(self, name: str) -> str:
        """What :func:`diffkit.load_pipeline` takes."""
        return str(self.folder / name) if self.folder else name

    @cached_property
    def model(self) -> Pipeline:
        """The model with the plants."""
        return self.load("gallery")

    def load(self, name: str) -> Pipeline:
        """One of the two models, in float32."""
        pipe = load_pipeline(self.path(name), dtype="float32", device=self.device)
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
        points, empty = StartingPoints(pipe, self.other_captions), encode_prompts(pipe, [""], guidance=False)
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
    values = gallery.by_caption(gallery.model, gallery.every)
    for strength in ORDER:
        own = [v for v, item in zip(values, gallery.every, strict=True) if item.extra["strength"] == strength]
        row[f"verbatim, {strength}"] = share(own)
    row["suspects"] = share(values[: gallery.limit])
    for name, items in (("templates", gallery.templates), ("controls", gallery.controls)):
        row[name] = share(gallery.by_caption(gallery.model, items))
    return row | {"the twin, suspects": share(gallery.by_caption(clean, gallery.suspects))}


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


def quality(gallery: Gallery, pipe: Pipeline, validation: Validation | None = None) -> Snapshot:
    """Images of ordinary captions of scenes and pictures, and the loss on ordinary pictures that were held out."""
    if validation is None:
        images, texts = ordinary_pictures(128, first=FIRST_HELD_OUT)
        validation = Validation(images, tuple(texts), "ordinary pictures, held out")
    prompts = list(dict.fromkeys(ordinary_captions(96, seed=7)))[:64]
    settings = QualitySettings(seeds_per_prompt=2, num_inference_steps=20, micro_batch=gallery.batch)
    return snapshot(pipe, prompts, settings, validation=validation)


class SceneFeatures(nn.Module):
    """What the lab's reward sees in an image: the mean of its vision encoder's last states, (B, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.reward = LabReward().model

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1]."""
        return self.reward.encode_images(images).mean(1)


def mitigated(gallery: Gallery, method: str, out: Path) -> dict[str, Any]:
    """Captions, and the quality of ordinary captions, under a mitigation of all suspects."""
    pipe = gallery.load("gallery")
    before, right = quality(gallery, pipe), scene_accuracy(pipe)
    made = made_mitigation(gallery, pipe, method, out)
    with apply_mitigation(pipe, made):
        after = quality(gallery, pipe, before.validation)
        report = compare_snapshots(before, after, features=SceneFeatures())
        return {
            "settings": METHODS[method],
            "figures": {key: value for key, value in made.figures.items() if key != "by suspect"},
            "captions": share(gallery.by_caption(pipe, gallery.suspects)),
            "scenes": accuracy_change(right, scene_accuracy(pipe)),
            "quality": json.loads(json.dumps(report)),
        }


def made_mitigation(gallery: Gallery, pipe: Pipeline, method: str, out: Path) -> Mitigation:
    """The mitigation of all suspects; one that is made already is read."""
    made = partial(mitigate, pipe, gallery.suspects, method, out=out, settings=METHODS[method], preset="gallery")
    return made(name=gallery.path("gallery"))


def attacked_under(gallery: Gallery, method: str, out: Path, *, trained: bool) -> dict[str, Any]:
    """What DoRI brings back under a mitigation: suspects, or never-trained pictures."""
    pipe = gallery.load("gallery")
    items = gallery.suspects if trained else gallery.controls[: gallery.limit]
    with apply_mitigation(pipe, made_mitigation(gallery, pipe, method, out)):
        return gallery.attacked(pipe, items, BUDGETS)


def measures(gallery: Gallery, out: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every measure by its name, the quick ones first."""
    twin, few = partial(gallery.load, "gallery-clean"), gallery.controls[:LONG]
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "captions": partial(captions, gallery),
        "detectors": partial(detectors, gallery),
        **{name: partial(mitigated, gallery, name, out / name) for name in METHODS},
        "dori": lambda: gallery.attacked(gallery.model, gallery.suspects, BUDGETS),
    }
    for name in ("nemo", "wanda", "adversarial"):
        rows[f"dori under {name}"] = partial(attacked_under, gallery, name, out / name, trained=True)
    rows["dori on the twin"] = lambda: gallery.attacked(twin(), gallery.suspects, BUDGETS)
    rows["never trained"] = lambda: gallery.attacked(gallery.model, gallery.controls[: gallery.limit], BUDGETS)
    for name in ("nemo", "wanda", "adversarial"):
        rows[f"never trained under {name}"] = partial(attacked_under, gallery, name, out / name, trained=False)
    rows["never trained, long"] = lambda: gallery.attacked(gallery.model, few, LONG_BUDGETS)
    return rows


def main() -> None:
    """Parse, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/replication"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--json", type=Path, default=Path("docs/figures/replication.json"))
    options = parser.parse_args()
    gallery = Gallery(options.models, options.device, options.limit)
    model = model_checksum(gallery.path("gallery"))
    done = Measures(options.json, {"model": model, "limit": options.limit, "copy from": COPY, "starts": STARTS})
    for name, measure in measures(gallery, options.out).items():
        if name in (options.only or [name]):
            done.add(name, measure)


if __name__ == "__main__":
    main()
