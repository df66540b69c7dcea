"""Does any pruner erase? Saliencies and allocations at rising sparsity, until captions give no image; then DoRI.

    python scripts/measure_pruning.py [--model gallery] [--models runs/gallery] [--device cuda] [--out runs/pruning]
        [--only taylor/global,wanda/tyr/forget,taylor/global@channels] [--sparsities 0.1,0.2,0.3] [--set examples=64]
        [--limit 64] [--attacked 32] [--starts prompt,gaussian] [--json docs/figures/pruning.json]
        [--mitigations runs/replication/adversarial] [--skip 2]

Each row is a saliency, an allocation and, where the allocation is measured, its objective; ``@channels`` prunes whole
heads, channels and groups. At each sparsity: captions that still give their image, scene accuracy (on the lab), the
loss on ordinary images that no model was trained on and, of channels, the FLOP of the shrunk denoiser over the whole
one's; at the first at which at most a fifth of the captions are left (or the last) also KID of ordinary captions, and
what DoRI brings back in 50 and 150 steps from each of ``--starts``, of ``--attacked`` suspects and half as many
pictures that were never trained on; of channels the seconds of the whole denoiser over the shrunk one's, in pairs of
calls, for which the machine should be quiet. ``--mitigations`` takes mitigations of the same model that were made
elsewhere, and measures them alike, without ``--only`` no row besides them.
``--only ROW --sparsities 0.3`` measures a row beyond the sparsity at which its captions are gone.
Measures that the JSON holds are not made again: a killed run goes on, and processes with different ``--only`` may run
side by side.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gallery_measures import Gallery, SceneFeatures, denoiser_call, denoiser_flops, held_out_pictures, share
from measures import Measures
from paired import paired_seconds
from torch import Tensor

from diffkit.families import Pipeline
from diffkit.lab.measure import accuracy_change, scene_accuracy
from diffkit.lab.planted import PHOTOGRAPHS
from diffkit.lab.world import draw, held_out_scenes, training_scenes
from diffkit.loading import model_checksum
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.mitigation.shrink import shrink
from diffkit.suspects import Suspect, read_suspects
from memorization.attack.initialization import Start
from memorization.mitigation import methods
from memorization.mitigation.run import mitigate, parse_settings
from memorization.presets import choose_preset
from memorization.quality.losses import validation_losses
from memorization.quality.report import compare_snapshots
from memorization.quality.settings import QualitySettings
from memorization.quality.snapshots import Snapshot, Validation, snapshot

SALIENCIES = ("magnitude", "wanda", "distortion", "taylor")
ALLOCATIONS = ("uniform", "global", "module", "ecoflap/loss", "ecoflap/forget", "tyr/loss", "tyr/forget", "tyr/dori")
CHANNELS = tuple(f"{saliency}/global@channels" for saliency in SALIENCIES)
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LEFT, BUDGETS = 0.2, (0, 50, 150)
SPEED_ROWS, SPEED_PAIRS = 16, 15


class Lab(Gallery):
    """The lab's model and its verbatim images of full strength, with the interface of the gallery."""

    def __init__(self, folder: Path | None, device: str, limit: int) -> None:
        self.folder, self.device, self.limit = folder, device, limit
        full = {photograph.name for photograph in PHOTOGRAPHS if photograph.strength == "full"}
        planted = [suspect for suspect in read_suspects("lab:planted")[0] if suspect.kind == "verbatim"]
        self.suspects = [suspect for suspect in planted if suspect.images[0].stem in full][:limit]
        self.controls = read_suspects("lab:controls")[0]
        self.other_captions = tuple(scene.caption for scene in training_scenes(8, seed=2024))
        self.batch = 256 if device != "cpu" else 16


def held_out(gallery: Gallery) -> tuple[Tensor, Sequence[str]]:
    """Ordinary images that no model was trained on, and their captions."""
    n = min(128, 2 * gallery.limit)
    if not isinstance(gallery, Lab):
        images, captions = held_out_pictures()
        return images[:n], captions[:n]
    scenes = held_out_scenes(n, seed=7)
    return draw(scenes, seed=8), [scene.caption for scene in scenes]


Make = Callable[[], Mitigation | str | None]  # none where the model stays as it is


class Subject:
    """A model, what it memorized, and how good it is before anything is done to it."""

    def __init__(self, name: str, gallery: Gallery, attacked: int) -> None:
        self.name, self.gallery, self.attacked = name, gallery, attacked
        self.pipe: Pipeline = gallery.load(name)
        self.scenes = self._scenes()
        self.held_out = held_out(gallery)
        self.before = self._snapshot()

    def _scenes(self) -> Tensor | None:
        """Which held-out scenes the model draws right; None for the gallery's, which draws none right."""
        return scene_accuracy(self.pipe, min(40, self.gallery.limit)) if isinstance(self.gallery, Lab) else None

    def _snapshot(self) -> Snapshot:
        """Images of ordinary captions, and the loss on the held-out pictures."""
        settings = QualitySettings(seeds_per_prompt=2, num_inference_steps=20, micro_batch=self.gallery.batch)
        images, captions = self.held_out
        prompts = list(dict.fromkeys(captions))[:64]
        return snapshot(self.pipe, prompts, settings, validation=Validation(images, tuple(captions), "held out"))

    def under(self, make: Make, take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A measure of the pipeline under a mitigation, or as it is."""
        made = make()
        with nullcontext() if made is None else apply_mitigation(self.pipe, made):
            return take()

    def figures(self) -> dict[str, Any]:
        """Captions, scenes and loss of the pipeline as it is."""
        images, captions = self.held_out
        losses = validation_losses(self.pipe, images, captions, draws=1, micro_batch=self.gallery.batch).loss
        copies = share(self.gallery.by_caption(self.pipe, self.gallery.suspects))
        scenes = self._scenes()
        changed = {} if self.scenes is None or scenes is None else {"scenes": accuracy_change(self.scenes, scenes)}
        return {"captions": copies, "loss": float(losses.mean())} | changed

    def quality(self) -> dict[str, Any]:
        """What the pipeline as it is has lost on ordinary captions and pictures."""
        return dict(json.loads(json.dumps(compare_snapshots(self.before, self._snapshot(), features=SceneFeatures()))))

    @torch.no_grad()
    def speed(self, make: Callable[[], Mitigation]) -> dict[str, Any]:
        """Seconds of the whole denoiser over those of the shrunk one."""
        whole = denoiser_call(self.pipe, SPEED_ROWS)
        with shrink(self.pipe, make()):
            shrunk = copy.deepcopy(denoiser_call(self.pipe, SPEED_ROWS))  # the pipeline's own is whole again after this
        return paired_seconds(whole, shrunk, SPEED_PAIRS)

    def dori(self, start: Start) -> dict[str, Any]:
        """What DoRI brings back of suspects and of controls, by its steps."""
        items = {
            "suspects": self.gallery.suspects[: self.attacked],
            "controls": self.gallery.controls[: self.attacked // 2],
        }
        return {name: self._brought_back(chosen, start) for name, chosen in items.items()}

    def _brought_back(self, items: Sequence[Suspect], start: Start) -> dict[str, Any]:
        similarities = self.gallery.brought_back(self.pipe, items, BUDGETS, [start])
        return {budget: share([row[start] for row in rows]) for budget, rows in similarities.items()}


def prune(subject: Subject, row: str, sparsity: float, settings: Sequence[str], out: Path) -> Mitigation:
    """The pruning of a row at a sparsity, made once."""
    weights, _, structure = row.partition("@")
    saliency, allocation, *objective = weights.split("/")
    chosen = [f"saliency={saliency}", f"allocation={allocation}", f"sparsity={sparsity}", *settings]
    chosen += [f"objective={name}" for name in objective] + ([f"structure={structure}"] if structure else [])
    path, method = subject.gallery.path(subject.name), methods.get("prune")
    return mitigate(
        subject.pipe,
        subject.gallery.suspects,
        method,
        out=out / f"{row.replace('/', '-')}-{sparsity}",
        settings=parse_settings(method, chosen, choose_preset("auto", subject.name)),
        preset="gallery" if subject.name == "gallery" else "lab",
        name=path,
        model_sha256=model_checksum(path),
    )


def pruning_figures(subject: Subject, made: Mitigation) -> dict[str, Any]:
    """What went, and of channels the FLOP of the shrunk denoiser over the whole one's."""
    kept = ("weights", "weights off in all", "share off in all", "search")
    figures = {"figures": {name: made.figures[name] for name in kept if name in made.figures}}
    if made.settings["structure"] != "channels":
        return figures
    whole = denoiser_flops(subject.pipe)
    with shrink(subject.pipe, made):
        return figures | {"flop": denoiser_flops(subject.pipe) / whole}


def measure_resistance(subject: Subject, name: str, make: Make, starts: Sequence[Start], done: Measures) -> None:
    """Under a mitigation: what ordinary captions have lost, and what DoRI brings back from each start."""
    if name != "unpruned":
        done.add(f"quality under {name}", partial(subject.under, make, subject.quality))
    for start in starts:
        done.add(f"dori under {name} from {start}", partial(subject.under, make, partial(subject.dori, start)))


def measure_row(subject: Subject, row: str, options: argparse.Namespace, done: Measures) -> None:
    """Sparsities of a row from the smallest, until few captions are left; DoRI and quality at that one."""

    def figures(make: Callable[[], Mitigation]) -> dict[str, Any]:
        return subject.under(make, subject.figures) | pruning_figures(subject, make())

    for sparsity in options.sparsities[options.skip :]:
        name, make = f"{row} at {sparsity}", partial(prune, subject, row, sparsity, options.set or [], options.out)
        if done.add(name, partial(figures, make))["captions"]["share"] <= LEFT:
            break
    measure_resistance(subject, name, make, options.starts, done)
    if row.endswith("@channels"):
        done.add(f"speed under {name}", partial(subject.speed, make))


def main() -> None:
    """Parse, measure what is missing, write the JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("gallery", "lab"), default="gallery")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--attacked", type=int, default=32)
    parser.add_argument("--starts", type=lambda text: text.split(","), default=["prompt"])
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--skip", type=int, default=0, help="sparsities that a dear search leaves out, from the lowest")
    parser.add_argument("--sparsities", type=lambda text: [float(part) for part in text.split(",")], default=SPARSITIES)
    parser.add_argument("--set", action="append")
    parser.add_argument("--mitigations", type=Path, nargs="+", default=[])
    parser.add_argument("--json", type=Path, default=Path("docs/figures/pruning.json"))
    options = parser.parse_args()
    if options.skip >= len(options.sparsities):
        parser.error(f"--skip {options.skip} leaves none of the {len(options.sparsities)} sparsities.")
    torch.manual_seed(0)
    gallery = (Lab if options.model == "lab" else Gallery)(options.models, options.device, options.limit)
    config = {
        "model": model_checksum(gallery.path(options.model)),
        "limit": options.limit,
        "attacked": options.attacked,
        "settings": options.set or [],
    }
    subject = Subject(options.model, gallery, options.attacked)
    weights = [f"{saliency}/{allocation}" for allocation in ALLOCATIONS for saliency in SALIENCIES]
    rows = options.only or ([] if options.mitigations else [*weights, *CHANNELS])
    done = Measures(options.json, config)
    others: dict[str, Make] = {"unpruned": lambda: None}
    others |= {folder.name: partial(str, folder) for folder in options.mitigations}
    for name, make in others.items():
        done.add(name, partial(subject.under, make, subject.figures))
        measure_resistance(subject, name, make, options.starts, done)
    for row in rows:
        measure_row(subject, row, options, done)


if __name__ == "__main__":
    main()
