"""All detectors on the lab: who finds which planted captions, against which others, at what cost.

    python scripts/measure_detectors.py [--out runs/detectors] [--json docs/figures/detectors.json]
        [--plot docs/figures/detectors.png]

Positives are the lab's planted captions by kind and strength. Negatives are 84 held-out scenes (captions the model
draws well and never saw), the 16 captions of the never-trained photographs, and 24 shuffles of the latters' words. A
shuffle may wake a memory by accident: one whose images copy a planted photograph (median over four seeds of the tiled
similarity at or above 0.75) is no negative and is counted apart. Resumes where it was cut.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import kendalltau

from diffkit.conditioning import encode_prompts
from diffkit.images import load_image
from diffkit.lab import planted, world
from diffkit.loading import load_pipeline
from diffkit.stats import auc, clopper_pearson
from diffkit.suspects import read_suspects
from memorization.copies import load_copy_detector
from memorization.detection import make_detector
from memorization.detection.calibrate import calibrate_detector, threshold_at
from memorization.detection.curvature_difference import mask_for
from memorization.detection.score_captions import score_captions
from memorization.generation import Sampling, generate

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = (
    "noise_magnitude:steps=1",
    "noise_magnitude:steps=5",
    "noise_magnitude",
    "anisotropy",
    "sharpness",
    "attention_entropy_one_step",
    "attention_entropy",
    "bright_ending",
    "curvature_difference:draws=1",
    "seed_agreement",
)
SEEDS, SCENES, SHUFFLES, COPY, FPR = 2, 84, 24, 0.75, 0.01
SAMPLING = Sampling(num_inference_steps=20, guidance_scale=3.0, micro_batch=16)
Scores = Mapping[str, float]


def negatives() -> dict[str, list[str]]:
    """Captions by kind."""
    words = sorted({word for caption in planted.control_captions() for word in caption.split()})
    source = random.Random(20)
    return {
        "photographs": planted.control_captions(),
        "scenes": [scene.caption for scene in world.held_out_scenes(SCENES, seed=2026)],
        "shuffles": [" ".join(source.sample(words, 5)) for _ in range(SHUFFLES)],
    }


def detect(out: Path) -> list[dict[str, Any]]:
    """Run (or resume) ``diffkit audit detect`` on suspects and negatives; one journal line each."""
    out.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"{kind}-{i}", "caption": caption, "kind": kind}
        for kind, captions in negatives().items()
        for i, caption in enumerate(captions)
    ]
    listed = out / "negatives.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [sys.executable, "-m", "diffkit", "audit", "detect", "--model", "lab", "--controls", str(listed)]
    line += ["--detectors", ",".join(DETECTORS), "--seeds", str(SEEDS), "--out", str(out / "run")]
    subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(text)["item"] for text in (out / "run" / "journal.jsonl").read_text().splitlines()]


def waking(captions: list[str]) -> dict[str, float]:
    """Each caption's highest similarity to any planted photograph, median over seeds."""
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    known = torch.stack([load_image(suspect.images[0]) for suspect in read_suspects("lab:planted")[0]])
    embeds = encode_prompts(pipe, captions, guidance=False).prompt_embeds.repeat_interleave(4, 0)
    empty = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    images = generate(pipe, embeds, empty, list(range(4)) * len(captions), sampling=SAMPLING).images
    similarity = load_copy_detector("tiled").similarity(images, known)
    found = [float(part.median(0).values.max()) for part in similarity.split(4)]
    return dict(zip(captions, found, strict=True))


def groups(items: list[dict[str, Any]], awake: Mapping[str, float]) -> dict[str, list[dict[str, Any]]]:
    """Items by kind and strength; negatives that wake a memory in a group of their own."""
    strength = {photograph.name: photograph.strength for photograph in planted.planted()}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        if item["role"] == "suspect":
            found[f"{item['kind']}, {strength[item['id'].removesuffix('.png')]}"].append(item)
        elif awake.get(item["prompt"], 0.0) >= COPY:
            found[f"{item['kind']} that wake a memory"].append(item)
        else:
            found[item["kind"]].append(item)
    return dict(found)


def values(items: list[dict[str, Any]], detector: str, seeds: int = SEEDS) -> list[float]:
    """Mean over the first seeds, one value a caption; what has no score is left out and counted by the run."""
    scores = [item["scores"][detector]["seeds"][:seeds] for item in items]
    return [sum(own) / len(own) for own in scores if None not in own]


def row(found: Mapping[str, list[dict[str, Any]]], detector: str) -> dict[str, Any]:
    """All figures of one detector."""
    full, mix = found["verbatim, full"], [*found["scenes"], *found["photographs"]]
    every = [*mix, *found["shuffles"]]
    threshold = threshold_at(values(mix, detector), FPR)
    flagged: dict[str, Any] = {}
    for name, items in found.items():
        scores = values(items, detector)
        k = sum(threshold.flags(score) for score in scores)
        interval = clopper_pearson(k, len(scores))
        flagged[name] = {"k": k, "n": len(scores), "interval": interval, "median": median(scores)}
    against = {"scenes and photographs": mix, "scenes": found["scenes"], "and shuffles": every}
    table = {
        name: calibrate_detector(values(full, detector), values(items, detector), detector=detector, fpr=FPR).to_json()
        for name, items in against.items()
    }
    photographs = values(found["photographs"], detector)
    wins = [(f > p) + 0.5 * (f == p) for f in values(full, detector) for p in photographs]
    one_seed = calibrate_detector(values(full, detector, 1), values(mix, detector, 1), detector=detector, fpr=FPR)
    return {
        "needs": sorted(make_detector(detector).needs),
        "rows for a caption and seed": make_detector(detector).cost(SAMPLING),
        "full-strength verbatim against": table,
        "AUC against the photographs": {"auc": sum(wins) / len(wins), "n": len(photographs)},
        "one seed": one_seed.to_json(),
        "slope over strength": slope(found, detector),
        "flagged at 1 % of scenes and photographs": flagged,
    }


def slope(found: Mapping[str, list[dict[str, Any]]], detector: str) -> dict[str, Any]:
    """Kendall's tau-b between planted strength (weak < medium < full) and score, over the verbatim captions."""
    pairs = [
        (rank, score)
        for rank, strength in enumerate(("weak", "medium", "full"))
        for score in values(found[f"verbatim, {strength}"], detector)
    ]
    result = kendalltau([rank for rank, _ in pairs], [score for _, score in pairs])
    return {"tau": float(result.statistic), "p": float(result.pvalue), "n": len(pairs)}


def plot(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Every caption's score by group, one panel a detector, with the threshold at 1 % of scenes and photographs."""
    import matplotlib.pyplot as plt

    order = ["scenes", "photographs", "verbatim, weak", "verbatim, medium", "verbatim, full"]
    order += ["template, weak", "template, medium", "template, full"]
    figure, axes = plt.subplots(2, 5, figsize=(15, 6.2), sharex=True, layout="constrained")
    for axis, detector in zip(axes.flat, DETECTORS, strict=True):
        for place, name in enumerate(order):
            scores = values(found[name], detector)
            source = random.Random(place)
            across = [place + source.uniform(-0.2, 0.2) for _ in scores]
            axis.scatter(across, scores, s=9, color="#b03a2e" if place > 1 else "#5d6d7e", alpha=0.7, linewidths=0)
        limit = threshold_at(values([*found["scenes"], *found["photographs"]], detector), FPR).value
        axis.axhline(limit, color="black", linewidth=0.7, linestyle="--")
        axis.set_title(detector, fontsize=9)
        axis.set_xticks(range(len(order)), order, rotation=60, ha="right", fontsize=7)
        axis.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=110)


def masks() -> dict[str, float]:
    """For every template, how often a fixed pixel outshines one of the varying sticker in the curvature map (AUC)."""
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    left, top, right, bottom = planted.STICKER_BOX
    varies = torch.zeros(world.SIZE, world.SIZE, dtype=torch.bool)
    varies[top:bottom, left:right] = True
    found = {}
    for photograph in planted.planted():
        if photograph.kind == "template":
            sampling = SAMPLING._replace(micro_batch=4)
            picture = mask_for(pipe, photograph.captions()[0], list(range(4)), sampling=sampling, draws=8)
            found[photograph.name] = auc(picture[~varies].tolist(), picture[varies].tolist())
    return found


def seconds() -> dict[str, float]:
    """Processor seconds for one caption with its seeds, on one core, of four captions."""
    torch.set_num_threads(1)
    pipe = load_pipeline("lab")
    pipe.set_progress_bar_config(disable=True)
    captions = [suspect.caption for suspect in read_suspects("lab:planted")[0][:4]]
    took = {}
    for spec in DETECTORS:
        detector = make_detector(spec)
        score_captions(pipe, captions[:1], detector, [[0]], sampling=SAMPLING._replace(num_inference_steps=2))
        began = time.process_time()
        score_captions(pipe, captions, detector, [list(range(SEEDS))] * 4, sampling=SAMPLING)
        took[spec] = (time.process_time() - began) / 4
    return took


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/detectors"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="write a PNG of all scores")
    options = parser.parse_args()
    items = detect(options.out)
    shuffled = negatives()["shuffles"] + negatives()["photographs"]
    awake = waking(shuffled)
    found = groups(items, awake)
    took = seconds()
    result = {
        "settings": {"steps": 20, "guidance": 3.0, "seeds": SEEDS, "false alarms": FPR, "copy from": COPY},
        "n": {name: len(members) for name, members in found.items()},
        "captions that wake a memory": {caption: v for caption, v in awake.items() if v >= COPY},
        "curvature map of templates, fixed against varying pixels (AUC)": masks(),
        "detectors": {spec: row(found, spec) | {"seconds for a caption": took[spec]} for spec in DETECTORS},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
