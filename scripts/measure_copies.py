"""How well each copy detector tells copies apart on the lab, and what the quality report says of the lab's twin.

    python scripts/measure_copies.py [--seeds 4] [--prompts 40] [--json docs/figures/copies.json]

Copies: images that ``lab`` makes from the captions of full-strength planted images. Non-copies: images that its twin
``lab-clean``, which never saw them, makes from the same captions with the same noise. Distorted photographs, as every
audit's calibration makes them, come beside. SSCD takes part where DIFFKIT_SSCD names its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.conditioning import encode_prompts
from diffkit.console import say
from diffkit.images import load_image
from diffkit.lab import planted
from diffkit.lab.measure import scene_correct
from diffkit.loading import load_pipeline
from diffkit.rewards.lab import LabReward
from diffkit.seeds import item_seed
from diffkit.stats import auc, clopper_pearson, tpr_at_fpr
from diffkit.suspects import Suspect, read_suspects
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.calibrate import calibrate_copy_detector
from memorization.copies.masked import Masked
from memorization.copies.near_duplicates import duplicate_threshold, group_duplicates
from memorization.generation import Sampling, generate, round_trip
from memorization.quality import QualitySettings, quality_report, read_quality_prompts

DETECTORS = ("tiled", "latent", "ms-ssim", *(("sscd", "sscd-288") if os.environ.get("DIFFKIT_SSCD") else ()))


def strength(suspect: Suspect) -> tuple[str, str]:
    """Kind and strength of a planted image."""
    entry = next(p for p in planted.planted() if p.name == suspect.images[0].stem)
    return entry.kind, entry.strength


def share(k: int, n: int) -> dict[str, Any]:
    """k of n with its exact 95 % interval."""
    low, high = clopper_pearson(k, n)
    return {"k": k, "n": n, "share": k / n, "low": low, "high": high}


def drawn(pipe: Any, suspects: list[Suspect], seeds: int) -> Tensor:
    """(suspects, seeds, 3, H, W) images from the captions, the same noise for every model."""
    embeds = encode_prompts(pipe, [s.caption for s in suspects], guidance=False).prompt_embeds
    negative = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    noise = [item_seed(0, s.id, "copies", i) for s in suspects for i in range(seeds)]
    pipe.set_progress_bar_config(disable=True)
    rows = embeds.repeat_interleave(seeds, 0)
    made = generate(pipe, rows, negative, noise, sampling=Sampling(20, 3.0, 16)).images
    images: Tensor = made.unflatten(0, (-1, seeds))
    return images


def separation(detector: CopyDetector, pairs: list[tuple[Tensor, Tensor, Tensor]], point: float) -> dict[str, Any]:
    """Medians over seeds of copies and non-copies against their references; each pair: lab, twin, references."""
    scores = [[float(detector.similarity(side, known).amax(1).median()) for side in (a, b)] for a, b, known in pairs]
    copies, others = ([row[i] for row in scores] for i in (0, 1))
    return {
        "auc": auc(copies, others),
        "tpr at 1 % fpr": tpr_at_fpr(copies, others, 0.01),
        "copies found": share(sum(value >= point for value in copies), len(copies)),
        "others flagged": share(sum(value >= point for value in others), len(others)),
        "copies": copies,
        "others": others,
    }


def measure_detectors(seeds: int) -> dict[str, Any]:
    """Every detector on distorted photographs and on generations."""
    lab, clean = load_pipeline("lab"), load_pipeline("lab-clean")
    suspects, controls = (read_suspects(f"lab:{name}")[0] for name in ("planted", "controls"))
    photographs = torch.stack([load_image(s.images[0]) for s in [*suspects, *controls]])
    kinds = [strength(suspect) for suspect in suspects]
    made = drawn(lab, suspects, seeds), drawn(clean, suspects, seeds)
    outside = torch.ones(photographs.shape[-2:])
    left, top, right, bottom = planted.STICKER_BOX
    outside[top:bottom, left:right] = 0
    result: dict[str, Any] = {"seeds": seeds, "photographs": len(photographs)}
    for name in DETECTORS:
        say(f"measuring {name}")
        detector = load_copy_detector(name, lab)
        began = time.perf_counter()
        point = calibrate_copy_detector(detector, photographs, round_trip=lambda x: round_trip(lab, x))
        row: dict[str, Any] = {"calibration": point.to_json(), "seconds": time.perf_counter() - began}
        labels = group_duplicates(
            len(photographs), lambda i: photographs[i : i + 1], detector, duplicate_threshold(point.threshold)
        )
        row["duplicates"] = len(photographs) - len(set(labels))
        groups = {"verbatim, full": ("verbatim", "full"), "template, full": ("template", "full")}
        for group, wanted in groups.items():
            chosen = [i for i, kind in enumerate(kinds) if kind == wanted]
            pairs = [(made[0][i], made[1][i], photographs[i : i + 1]) for i in chosen]
            row[group] = separation(detector, pairs, point.threshold)
            if wanted[0] == "template":
                row[f"{group}, masked"] = separation(Masked(detector, outside), pairs, point.threshold)
        result[name] = row
    return result


class Patches(nn.Module):
    """The lab reward's own vision transformer as a feature extractor."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LabReward().model

    def forward(self, images: Tensor) -> Tensor:
        """(B, patches, width)."""
        return self.model.encode_images(images)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {"detectors": measure_detectors(options.seeds)}
    say("measuring the quality of lab-clean against lab")
    found["quality of lab-clean against lab"] = quality_report(
        load_pipeline("lab"),
        load_pipeline("lab-clean"),
        read_quality_prompts("lab:held-out", options.prompts),
        QualitySettings(),
        rewards=["lab", scene_correct],
        features=Patches(),
    )
    text = json.dumps(found, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
