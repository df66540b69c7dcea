"""Published findings on memorization, measured again on the gallery: detectors, pruning, DoRI, adversarial fine-tuning.

    python scripts/measure_replication.py [--models runs/gallery] [--device cuda] [--out runs/replication]
        [--only captions,detectors,nemo] [--limit 64] [--json docs/figures/replication.json]

Suspects are the gallery's verbatim plants, the strongest first; never-trained images are its controls, never-trained
captions those of its controls and claims. As published, NeMo switches off each suspect's own neurons for that suspect;
"nemo-together" switches off the neurons that most suspects have, one mask for all. The models are the shipped ones, or
those of a folder that ``diffkit lab train --lab gallery`` made. Measures that the JSON holds are not made again: a
killed run goes on, and processes with different ``--only`` may run side by side.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gallery_measures import COPY, STARTS, Gallery, SceneFeatures, joined, quality, share, shares
from measures import Measures

from diffkit.families import Pipeline
from diffkit.lab.gallery.plan import WEIGHTS
from diffkit.lab.world import held_out_scenes
from diffkit.loading import model_checksum
from diffkit.mitigation import Mitigation, apply_mitigation, load_mitigation, save_mitigation
from diffkit.stats import Rate, auc, rate
from diffkit.suspects import Suspect
from memorization.attack.initialization import Start
from memorization.detection import make_detector
from memorization.detection.calibrate import calibrate_detector
from memorization.detection.score_captions import score_by_all
from memorization.generation import Sampling
from memorization.mitigation.nemo_method import shared_neurons
from memorization.mitigation.run import mitigate
from memorization.quality.report import compare_snapshots
from memorization.quality.snapshots import Snapshot

BUDGETS = (0, 10, 50)
LONG_BUDGETS, LONG, FEW = (0, 50, 150, 500), 12, 24  # so many controls for the long ones, and under mitigations
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
    "adversarial": {"updates": 1000},  # 64 suspects, where the preset was chosen for 24
    "prompt-guard": {},
    "attention-guard": {},
    "attention-guard factor 2": {"factor": 2.0},
    "attention-guard factor 4": {"factor": 4.0},  # the published sweep ends at 1.5
}
TOGETHER, MOST_SHARED = "nemo-together", 40  # of 384 neurons; at 30 four captions of 32 still gave their picture


def captions(gallery: Gallery) -> dict[str, Any]:
    """How many captions give their picture: plants by strength, templates, controls; the same from the twin."""
    clean, row = gallery.load("gallery-clean"), {}
    values = gallery.by_caption(gallery.model, gallery.every)
    for strength in WEIGHTS:
        own = [v for v, item in zip(values, gallery.every, strict=True) if item.extra["strength"] == strength]
        row[f"verbatim, {strength}"] = share(own)
    row["suspects"] = share(values[: gallery.limit])
    for name, items in (("templates", gallery.templates), ("controls", gallery.controls)):
        row[name] = share(gallery.by_caption(gallery.model, items))
    return row | {"the twin, suspects": share(gallery.by_caption(clean, gallery.suspects))}


def detectors(gallery: Gallery, names: Sequence[str] = DETECTORS, seeds: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """AUC and the share found at 1 % false alarms: threshold from one half of the captions, share from the other."""
    groups = {
        "plants": [item.caption for item in gallery.suspects],
        "never": [item.caption for item in (*gallery.controls, *gallery.claims)],
        "scenes": [scene.caption for scene in held_out_scenes(40, seed=5)],
    }
    every = [caption for captions in groups.values() for caption in captions]
    sampling = Sampling(20, 3.0, min(gallery.batch, 128))
    rows: dict[str, Any] = {}
    for name in names:
        detector = {name: make_detector(name)}
        scored = score_by_all(gallery.model, every, detector, [list(seeds)] * len(every), sampling=sampling)[name]
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


def mitigated(gallery: Gallery, method: str, out: Path) -> dict[str, Any]:
    """Captions, and the quality of ordinary captions, under a mitigation of all suspects."""
    pipe = gallery.load("gallery")
    before, made = quality(gallery, pipe), made_mitigation(gallery, pipe, method, out)
    with apply_mitigation(pipe, made):
        return mitigated_row(made, before, quality(gallery, pipe), gallery.by_caption(pipe, gallery.suspects))


def mitigated_row(made: Mitigation, before: Snapshot, after: Snapshot, captions: Sequence[float]) -> dict[str, Any]:
    """What the docs show of a mitigation."""
    return {
        "settings": METHODS.get(made.method, {}),
        "figures": {key: value for key, value in made.figures.items() if key != "by suspect"},
        "captions": share(captions),
        "quality": json.loads(json.dumps(compare_snapshots(before, after, features=SceneFeatures()))),
    }


def mitigated_by_parts(gallery: Gallery, method: str, out: Path) -> dict[str, Any]:
    """The same with each suspect's own part: for its caption, and for one of the ordinary captions."""
    pipe, values, before, after = gallery.load("gallery"), list[float](), list[Snapshot](), list[Snapshot]()
    made = made_mitigation(gallery, pipe, method, out)
    for place, suspect in enumerate(gallery.suspects):
        row = slice(place, place + 1)
        before.append(quality(gallery, pipe, row))
        with apply_mitigation(pipe, made, only=suspect.id):
            values += gallery.by_caption(pipe, [suspect])
            after.append(quality(gallery, pipe, row))
    return mitigated_row(made, joined(before), joined(after), values)


def made_mitigation(gallery: Gallery, pipe: Pipeline, method: str, out: Path) -> Mitigation:
    """The mitigation of all suspects; one that is made already is read."""
    if method == TOGETHER:
        folder = out.with_name(TOGETHER)
        shared = shared_neurons(made_mitigation(gallery, pipe, "nemo", out), MOST_SHARED)
        return load_mitigation(save_mitigation(folder, shared))
    return mitigate(
        pipe,
        gallery.suspects,
        method.partition(" ")[0],
        out=out,
        settings=METHODS[method],
        preset="gallery",
        name=gallery.path("gallery"),
    )


class Attack(NamedTuple):
    """What DoRI attacks, and from where."""

    items: Sequence[Suspect]
    starts: tuple[Start, ...] = STARTS


def attacked_under(gallery: Gallery, method: str, out: Path, attack: Attack) -> dict[str, Any]:
    """What DoRI brings back under a mitigation."""
    pipe = gallery.load("gallery")
    with apply_mitigation(pipe, made_mitigation(gallery, pipe, method, out)):
        return gallery.attacked(pipe, attack.items, BUDGETS, attack.starts)


def attacked_under_parts(gallery: Gallery, method: str, out: Path, attack: Attack) -> dict[str, Any]:
    """The same, each suspect under its own part; a never-trained picture under that of the suspect in its place."""
    pipe, values = gallery.load("gallery"), defaultdict[str, list[dict[str, float]]](list)
    made = made_mitigation(gallery, pipe, method, out)
    for item, suspect in zip(attack.items, gallery.suspects, strict=False):
        with apply_mitigation(pipe, made, only=suspect.id):
            for budget, rows in gallery.brought_back(pipe, [item], BUDGETS, attack.starts).items():
                values[budget] += rows
    return shares(values)


def measures(gallery: Gallery, out: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every measure by its name, the quick ones first."""
    twin, long = partial(gallery.load, "gallery-clean"), gallery.controls[:LONG]
    whole = {name: out / name.replace(" ", "-") for name in METHODS if name != "nemo"} | {TOGETHER: out / "nemo"}
    rows: dict[str, Callable[[], dict[str, Any]]] = {
        "captions": partial(captions, gallery),
        "detectors": partial(detectors, gallery),
        "sharpness of 4 seeds": partial(detectors, gallery, ["sharpness"], range(4)),
        "nemo": partial(mitigated_by_parts, gallery, "nemo", out / "nemo"),
        **{name: partial(mitigated, gallery, name, folder) for name, folder in whole.items()},
        "dori": lambda: gallery.attacked(gallery.model, gallery.suspects, BUDGETS),
        "dori on the twin": lambda: gallery.attacked(twin(), gallery.suspects, BUDGETS),
        "never trained": lambda: gallery.attacked(gallery.model, gallery.controls[: gallery.limit], BUDGETS),
        "never trained long": lambda: gallery.attacked(gallery.model, long, LONG_BUDGETS),
    }
    attacks = {
        "dori": Attack(gallery.suspects),
        "dori from the caption": Attack(gallery.suspects, ("prompt",)),
        "never trained": Attack(gallery.controls[:FEW]),
    }
    for title, attack in attacks.items():
        rows[f"{title} under nemo"] = partial(attacked_under_parts, gallery, "nemo", out / "nemo", attack)
        for name in (TOGETHER, "wanda", "adversarial"):
            rows[f"{title} under {name}"] = partial(attacked_under, gallery, name, whole[name], attack)
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
