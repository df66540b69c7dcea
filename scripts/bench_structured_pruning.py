"""Structured pruning: how much faster a shrunk denoiser is than its FLOP promise, and how well the lab still draws.

    python scripts/bench_structured_pruning.py [--parts speed,quality] [--json FILE]

Speed: 30 % of the units off by magnitude, uniform; one call of the whole and one of the shrunk denoiser in turns on one
thread, the ratio of each pair in seconds of the processor, which a busy machine lengthens less than those of the clock
(also given). FLOP are counted by :mod:`diffkit.flops`. The wide models have random weights. Quality: held-out scenes
that the lab's model draws right when 10, 20 or 30 % of the units are off. A part not asked for stays as it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from paired import paired_seconds

from diffkit.families import Pipeline, pipe_denoiser
from diffkit.flops import count_flops
from diffkit.lab.measure import accuracy_change, scene_accuracy
from diffkit.loading import load_pipeline
from diffkit.mitigation import Mitigation
from diffkit.mitigation.shrink import shrink
from memorization.mitigation.pruning.magnitude import saliency
from memorization.mitigation.pruning.structured import (
    allocate_units,
    importances,
    mask_of_units,
    prunable_units,
    unit_weights,
)
from memorization.mitigation.run import mitigate

FILE = Path(__file__).resolve().parents[1] / "docs" / "figures" / "structured_pruning.json"
SPARSITY, SPARSITIES, SALIENCIES = 0.3, (0.1, 0.2, 0.3), ("wanda", "magnitude")


class Model(NamedTuple):
    """A pipeline of which only the denoiser is run, and the shapes of its inputs: rows, latents, text."""

    pipe: Pipeline
    rows: int
    latents: tuple[int, int, int]
    text: tuple[int, int]


def lab() -> Model:
    """The lab's model, 8 images with guidance."""
    return Model(load_pipeline("lab", device="cpu"), 16, (4, 16, 16), (32, 128))


def unet() -> Model:
    """The two widest resolutions but one of Stable Diffusion's U-Net, one layer each, at 256 pixels."""
    denoiser = UNet2DConditionModel(
        sample_size=32, block_out_channels=(320, 640), layers_per_block=1, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=768,
    )  # fmt: skip
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        unet=denoiser.eval(), scheduler=DDIMScheduler(), requires_safety_checker=False, **parts
    )
    return Model(pipe, 1, (4, 32, 32), (77, 768))


def transformer() -> Model:
    """PixArt-Sigma's width, 6 of its 28 blocks, at 256 pixels."""
    denoiser = PixArtTransformer2DModel(
        sample_size=32, num_layers=6, attention_head_dim=72, num_attention_heads=16, cross_attention_dim=1152,
        caption_channels=512, in_channels=4, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    return Model(PixArtSigmaPipeline(transformer=denoiser.eval(), scheduler=DDIMScheduler(), **parts),
                 1, (4, 32, 32), (120, 512))  # fmt: skip


MODELS: dict[str, Callable[[], Model]] = {
    "lab, 16 rows": lab,
    "U-Net of 320 and 640 channels, 32x32 latents": unet,
    "transformer of 1152 channels, 256 tokens": transformer,
}


def mask(pipe: Pipeline) -> tuple[Mitigation, float]:
    """The least units by magnitude, uniform, and the share of the units' weights that they hold."""
    units, layers = prunable_units(pipe)
    by_weight = {name: saliency(layer.weight) for name, layer in layers.items()}
    scores = {name: importances(of, by_weight) for name, of in units.items()}
    weights = {name: unit_weights(of, layers) for name, of in units.items()}
    counts = allocate_units(scores, weights, SPARSITY, "uniform")
    off = sum(weights[name] * count for name, count in counts.items())
    share = off / sum(weights[name] * of.number for name, of in units.items())
    return Mitigation("prune", "mask", "bench", tensors=mask_of_units(units, layers, scores, counts)), share


def inputs(model: Model) -> dict[str, Any]:
    """Of one call of the denoiser."""
    source = torch.Generator().manual_seed(0)
    return {
        "timestep": torch.full((model.rows,), 500),
        "encoder_hidden_states": torch.randn(model.rows, *model.text, generator=source),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


@torch.no_grad()
def compared(model: Model, pairs: int) -> dict[str, Any]:
    """Ratios whole over shrunk, of FLOP, weights and seconds; of the seconds median, lowest and highest pair."""
    whole, named = pipe_denoiser(model.pipe), inputs(model)
    latents = torch.randn(model.rows, *model.latents, generator=torch.Generator().manual_seed(1))
    chosen, share = mask(model.pipe)
    with shrink(model.pipe, chosen):
        small = copy.deepcopy(whole)
    both = (whole, small)
    calls = [partial(each, latents, **named) for each in both]
    flop = [count_flops(each, ("call",), call) for each, call in zip(both, calls, strict=True)]
    return {
        "share of the units' weights": share,
        "flop": ratio(flop),
        "weights": ratio([sum(weight.numel() for weight in each.parameters()) for each in both]),
    } | paired_seconds(calls[0], calls[1], pairs)


def speed(pairs: int) -> dict[str, Any]:
    """The models one after the other, on one thread."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {"threads": 1, "load": os.getloadavg()[0], "sparsity": SPARSITY, "models": {}}
    for name, build in MODELS.items():
        result["models"][name] = compared(build(), pairs)
        print(name, json.dumps(result["models"][name]), flush=True)
    return result


def ratio(pair: list[Any]) -> float:
    """The whole's over the shrunk's."""
    if None in pair:
        raise SystemExit("This denoiser cannot be counted.")
    return float(pair[0] / pair[1])


def quality(scenes: int, seeds: int, out: Path) -> Iterator[dict[str, Any]]:
    """Scene accuracy of the lab's model with units off, drawn by the shrunk denoiser; what there is after each row."""
    pipe = load_pipeline("lab", device="cpu")
    before = scene_accuracy(pipe, scenes, seeds)
    rows: dict[str, Any] = {}
    for saliency_name in SALIENCIES:
        for sparsity in SPARSITIES:
            settings = {"structure": "channels", "saliency": saliency_name, "sparsity": sparsity}
            name = f"{saliency_name}, {sparsity}"
            made = mitigate(pipe, "lab:planted", "prune", out=out / name, settings=settings, name="lab", preset="lab")
            with shrink(pipe, made):
                rows[name] = accuracy_change(before, scene_accuracy(pipe, scenes, seeds))
            rows[name] |= {"share off": made.figures["share off in all"]}
            print(name, json.dumps(rows[name]), flush=True)
            yield {"scenes": scenes, "seeds": seeds, "rows": rows}


def main() -> None:
    """Parse, measure what was asked for, write after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="speed,quality")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/structured_pruning"))
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    content = json.loads(options.json.read_bytes()) if options.json.is_file() else {}
    for part in options.parts.split(","):
        if part == "speed":
            results: Iterable[dict[str, Any]] = [speed(options.pairs)]
        else:
            results = quality(options.scenes, options.seeds, options.out)
        for content[part] in results:
            options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
