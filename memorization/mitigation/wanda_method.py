"""Run :mod:`.wanda` over suspects: one journal line each, then a mask with a part per suspect and their union."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from diffkit.console import progress
from diffkit.errors import InputError
from diffkit.images import load_image
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.runs.files import safe_name, write_bytes_atomically
from diffkit.seeds import candidate_seed
from memorization.copies.finite import finite_similarity
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling, generate, require_finite
from memorization.mitigation import Method
from memorization.mitigation.layers import Mask, feed_forward_layers, matching, size
from memorization.mitigation.reference_captions import ordinary_captions
from memorization.mitigation.wanda import Norms, input_norms, mean_inputs, root_mean_square, select
from memorization.presets import recorded_preset
from memorization.text_embeddings import empty_text, encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline
    from diffkit.runs import Run
    from diffkit.suspects import Suspect

__all__ = ["METHOD", "WandaSettings"]


@dataclass(frozen=True)
class WandaSettings:
    """Settings of Wanda.

    Attributes:
        layers: patterns of the denoiser's linear layers, from the pipeline; None = the second feed-forward linears.
        sparsity: share of each output row's columns that is considered, per timestep. Of several, rising, each suspect
            gets the smallest after which its caption no longer gives the image (the last where none does), similar to
            NeMo's search; a single one is used as it is, as published.
        broken: similarity (median over ``generations``) below which a caption no longer gives the image, by tiled
            correlation to the suspect's images, or to the unmitigated images of the same seeds where it has none. A
            little below the audit's 0.75, since an audit uses other seeds.
        margin: how many times the base's score the target's must exceed; 1 as published.
        timesteps: number of first timesteps, whose union is taken.
        base: "ordinary" captions, or "empty" for the published "".
        captions: text file of ordinary captions; None = those of the preset.
        base_captions: number of them.
        fill: replaces the columns that are off: their "mean" input over ordinary captions, in the bias, which changes
            ordinary captions far less, or "zero" as published.
        parts: keep each suspect's own part; without, only their union, which is smaller.
        steps: denoising steps of a generation; ``guidance`` and ``seed``: its scale and its noise.
        micro_batch: captions generated at once.
    """

    layers: tuple[str, ...] | None = None
    sparsity: tuple[float, ...] = (0.01,)
    broken: float = 0.73
    generations: int = 3
    margin: float = 1.0
    timesteps: int = 10
    base: Literal["ordinary", "empty"] = "ordinary"
    captions: str | None = None
    base_captions: int = 32
    fill: Literal["mean", "zero"] = "mean"
    parts: bool = True
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    micro_batch: int = 8

    def __post_init__(self) -> None:
        """Check the values."""
        rising = all(low < high for low, high in pairwise(self.sparsity))
        if not self.sparsity or not rising or not 0 < self.sparsity[0] <= self.sparsity[-1] <= 1 or self.margin <= 0:
            raise InputError(
                f"Expected rising sparsity in (0, 1] and a positive margin, got {self.sparsity} and {self.margin}."
            )
        if not 0 < self.broken < 1 or self.generations < 1:
            raise InputError(f"Expected broken in (0, 1) and a generation, got {self.broken} and {self.generations}.")
        if not 1 <= self.timesteps <= self.steps or self.base_captions < 1 or self.micro_batch < 1:
            raise InputError(f"Expected 1 to {self.steps} timesteps, a base caption and a micro-batch of at least 1.")
        if self.base not in ("ordinary", "empty") or self.fill not in ("mean", "zero"):
            raise InputError(f"Expected base ordinary or empty, fill mean or zero, got {self.base!r}, {self.fill!r}.")


def mitigate(pipe: Pipeline, suspects: Sequence[Suspect], run: Run, settings: WandaSettings) -> Mitigation:
    """A mask with each suspect's weights as its own part; by default their union is applied."""
    config = run.record["config"]
    settings = replace(settings, layers=feed_forward_layers(pipe) if settings.layers is None else settings.layers)
    layers = matching(pipe, settings.layers or ())
    captions: tuple[str, ...] = ("",)
    if settings.base == "ordinary" or settings.fill == "mean":
        captions = ordinary_captions(settings.captions, preset=recorded_preset(run.record), n=settings.base_captions)
    pipe.set_progress_bar_config(disable=True)
    ordinary: dict[str, Tensor] = {}
    if settings.fill == "mean":
        ordinary = mean_inputs(pipe, layers, encoded(pipe, captions), **_sampling(settings))
    remaining = [suspect for suspect in suspects if suspect.id not in run.done]
    if remaining:
        base = root_mean_square(_norms(pipe, layers, ("",) if settings.base == "empty" else captions, settings))
    with progress("Wanda", total=len(remaining)) as bar:
        for suspect in remaining:
            chosen = _choose(pipe, layers, suspect, base, ordinary, settings)
            record = {"weights": size(chosen.mask), "sparsity": chosen.sparsity, "similarity": chosen.similarity}
            run.write(suspect.id, record | {"file": _save_part(run, suspect.id, chosen.mask)})
            bar.advance()
    tensors, together = _assemble(run, suspects, parts=settings.parts)
    tensors |= {f"{name}.inputs": values for name, values in ordinary.items() if name in together}
    return Mitigation(
        method="wanda",
        kind="mask",
        model=config["model"],
        tensors=tensors,
        model_sha256=config["model_sha256"],
        settings=asdict(settings),
        suspects=tuple(suspect.id for suspect in suspects),
        figures=_figures(run, suspects, layers, together),
    )


class ChosenMask(NamedTuple):
    """A suspect's mask, its sparsity, and the similarity of its caption's images; None = not generated, or broken."""

    mask: Mask
    sparsity: float
    similarity: float | None


def _choose(
    pipe: Pipeline,
    layers: dict[str, nn.Linear],
    suspect: Suspect,
    base: Norms,
    ordinary: Mapping[str, Tensor],
    settings: WandaSettings,
) -> ChosenMask:
    """The smallest sparsity after which the caption no longer gives the image; a single one is not tested."""
    target = {name: value[0] for name, value in _norms(pipe, layers, [suspect.caption], settings).items()}
    weights = {name: layer.weight for name, layer in layers.items()}
    single = len(settings.sparsity) == 1
    references = None if single else _references(pipe, suspect, settings)
    for sparsity in settings.sparsity:
        chosen = ChosenMask(select(weights, target, base, sparsity=sparsity, margin=settings.margin), sparsity, None)
        if references is None:
            break
        tensors = {f"{name}.weights": flat for name, flat in _flat(chosen.mask).items()}
        tensors |= {f"{name}.inputs": values for name, values in ordinary.items()}
        with apply_mitigation(pipe, Mitigation(method="wanda", kind="mask", model="", tensors=tensors)):
            after = _images(pipe, suspect, settings)
        similarity = _similarity(after, references, paired=not suspect.images)
        chosen = chosen._replace(similarity=similarity if math.isfinite(similarity) else None)
        if chosen.similarity is not None and chosen.similarity < settings.broken:
            break
    return chosen


def _references(pipe: Pipeline, suspect: Suspect, settings: WandaSettings) -> Tensor:
    """(R, 3, H, W): the suspect's own images, else its caption's images before the mitigation, one per seed."""
    images = require_finite(_images(pipe, suspect, settings), f"of the caption of {suspect.id!r}")
    if not suspect.images:
        return images
    return torch.stack([load_image(path, (images.shape[-2], images.shape[-1])) for path in suspect.images])


def _similarity(images: Tensor, references: Tensor, *, paired: bool) -> float:
    """Median over images of the similarity to the reference at the same index, or to the most similar reference;
    NaN where an image is not finite."""
    table = finite_similarity(TiledCorrelation(), images, references)
    return float((table.diagonal() if paired else table.amax(1)).median())


def _images(pipe: Pipeline, suspect: Suspect, settings: WandaSettings) -> Tensor:
    """(generations, 3, H, W) of the suspect's caption."""
    n = settings.generations
    seeds = [candidate_seed(settings.seed, 1, index) for index in range(n)]
    embeds = encoded(pipe, [suspect.caption]).expand(n)
    sampling = Sampling(settings.steps, settings.guidance, n)
    return generate(pipe, embeds, empty_text(pipe), seeds, sampling=sampling).images


def _flat(mask: Mask) -> dict[str, Tensor]:
    return {name: part.flatten().nonzero().flatten().int() for name, part in mask.items() if part.any()}


def _sampling(settings: WandaSettings) -> dict[str, Any]:
    return {
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "micro_batch": settings.micro_batch,
    }


def _norms(pipe: Pipeline, layers: dict[str, nn.Linear], captions: Sequence[str], settings: WandaSettings) -> Norms:
    return input_norms(pipe, layers, encoded(pipe, captions), timesteps=settings.timesteps, **_sampling(settings))


def _save_part(run: Run, suspect: str, mask: Mask) -> str:
    """One suspect's flat indices in a file of its own; a journal line would be millions of numbers long."""
    from safetensors.torch import save

    name = f"parts/{safe_name(suspect)}.safetensors"
    write_bytes_atomically(run.path(name), save(_flat(mask)))
    return name


def _assemble(run: Run, suspects: Sequence[Suspect], *, parts: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mask's tensors, and each layer's union of flat indices."""
    from safetensors.torch import load

    tensors: dict[str, Tensor] = {}
    together: dict[str, Tensor] = {}
    for suspect in suspects:
        part = load(Path(run.path(run.done[suspect.id]["file"])).read_bytes())
        for name, flat in part.items():
            tensors[f"{suspect.id}/{name}.weights"] = flat
            together[name] = torch.cat([together[name], flat]).unique() if name in together else flat
    return (tensors if parts else {f"{name}.weights": flat for name, flat in together.items()}), together


def _figures(
    run: Run, suspects: Sequence[Suspect], layers: dict[str, nn.Linear], together: dict[str, Tensor]
) -> dict[str, Any]:
    counts = {suspect.id: run.done[suspect.id]["weights"] for suspect in suspects}
    total = sum(layer.weight.numel() for layer in layers.values())
    return {
        "weights": total,
        "weights off in all": sum(len(flat) for flat in together.values()),
        "share off in all": sum(len(flat) for flat in together.values()) / total,
        "weights off, median": median(counts.values()),
        "by suspect": {
            suspect.id: {key: run.done[suspect.id][key] for key in ("weights", "sparsity", "similarity")}
            for suspect in suspects
        },
    }


METHOD = Method(name="wanda", kind="mask", settings=WandaSettings, mitigate=mitigate)
