"""Allocations that are measured on the pipeline, ECoFLaP's and Týr's; each part is kept in the run as it is ready."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffkit.console import progress
from diffkit.seeds import item_seed
from memorization.mitigation.pruning.allocation import Counts, uniform_counts
from memorization.mitigation.pruning.calibration import Calibration
from memorization.mitigation.pruning.ecoflap import ecoflap_counts, sensitivity, squared_gradient_norm
from memorization.mitigation.pruning.layers import Layers, sizes
from memorization.mitigation.pruning.objectives import Fitness
from memorization.mitigation.pruning.saliencies import Saliencies
from memorization.mitigation.pruning.tyr import Candidate, bounds_around, expected_weight, next_generation, ranks

if TYPE_CHECKING:
    from diffkit.runs import Run

__all__ = ["Allocated", "by_ecoflap", "by_tyr", "execution_order"]


class Allocated(NamedTuple):
    """Weights off of each layer, the scores that say which, and figures of the allocation."""

    counts: Counts
    scores: Mapping[str, Tensor]
    figures: dict[str, object]


def by_ecoflap(saliencies: Saliencies, objective: Fitness, run: Run) -> Allocated:
    """See :mod:`.ecoflap`; a journal line for each layer."""
    settings, layers = saliencies.settings, saliencies.layers
    missing = [name for name in layers if f"ecoflap:{name}" not in run.done]
    with progress("ECoFLaP", total=len(missing)) as bar:
        for name in missing:
            weight = layers[name].weight
            norm = squared_gradient_norm(
                objective,
                weight,
                epsilon=settings.epsilon * max(float(weight.square().mean().sqrt()), 1e-12),
                perturbations=settings.perturbations,
                source=torch.Generator().manual_seed(item_seed(settings.seed, name, "ecoflap")),
            )
            run.write(f"ecoflap:{name}", {"squared gradient norm": norm})
            bar.advance()
    values = {
        name: sensitivity(layer.weight, run.done[f"ecoflap:{name}"]["squared gradient norm"])
        for name, layer in layers.items()
    }
    counts = ecoflap_counts(values, sizes(layers), sparsity=settings.sparsity, band=settings.band)
    return Allocated(counts, saliencies.scores(list(layers)), {"sensitivity by layer": values})


def by_tyr(saliencies: Saliencies, calibration: Calibration, objective: Fitness, run: Run) -> Allocated:
    """See :mod:`.tyr`; a journal line for each measured layer of a supernet and for each generation."""
    settings, layers = saliencies.settings, saliencies.layers
    counts = uniform_counts(sizes(layers), settings.sparsity)
    order = execution_order(layers, calibration) if saliencies.measured else []
    scores = saliencies.scores(list(layers))
    history: list[dict[str, float]] = []
    with progress("Týr", total=len(settings.grain) * (settings.generations + 1)) as bar:
        for stage, step in enumerate(settings.grain):
            if saliencies.measured:
                scores = supernet(saliencies, order, counts, step, f"tyr-{stage}")
            bar.advance()
            survivors: list[Candidate] = []
            for generation in range(settings.generations):
                key = f"tyr-{stage}:generation-{generation}"
                if key not in run.done:
                    source = torch.Generator().manual_seed(item_seed(settings.seed, key, "tyr"))
                    run.write(key, _generation(saliencies, scores, survivors, counts, step, objective, source))
                survivors = [Candidate(dict(zip(layers, c, strict=True)), f) for f, c in run.done[key]["survivors"]]
                bar.advance()
            first = run.done[f"tyr-{stage}:generation-0"]["start"]
            history.append({"step": step, "at the start": first, "best": survivors[0].fitness})
            counts = survivors[0].counts
    return Allocated(counts, scores, {"search": history})


def supernet(
    saliencies: Saliencies, order: Sequence[str], counts: Counts, step: float, stage: str
) -> dict[str, Tensor]:
    """Scores of every layer on the inputs that pruned lower layers give it, module by module."""
    scores: dict[str, Tensor] = {}
    with restored(saliencies.layers) as originals:
        done: set[str] = set()
        for first in order:
            module = next(part for part in saliencies.modules.values() if first in part)
            if first in done:
                continue
            scores |= saliencies.scores(module, stage)
            for name in module:
                places = ranks(scores[name])
                weight = expected_weight(originals[name], places, counts[name], step)
                saliencies.layers[name].weight.data = weight
            done |= set(module)
    return {name: scores[name] for name in saliencies.layers}


def _generation(
    saliencies: Saliencies,
    scores: Mapping[str, Tensor],
    survivors: Sequence[Candidate],
    start: Counts,
    step: float,
    objective: Fitness,
    source: torch.Generator,
) -> dict[str, object]:
    """The record of one generation: fitness and weights off, in the layers' order, of each survivor."""
    settings, layers = saliencies.settings, saliencies.layers
    places, weights = {name: ranks(value) for name, value in scores.items()}, sizes(layers)

    def fitness(counts: Counts) -> float:
        with restored(layers) as originals:
            for name, layer in layers.items():
                layer.weight.data = originals[name].masked_fill(places[name] < counts[name], 0)
            return objective()

    record: dict[str, object] = {}
    if not survivors:
        survivors = [Candidate(start, fitness(start))]
        record["start"] = survivors[0].fitness
    best = next_generation(
        survivors,
        weights,
        bounds_around(start, weights, step),
        step=step,
        population=settings.population,
        fitness=fitness,
        source=source,
    )
    return record | {"survivors": [[candidate.fitness, list(candidate.counts.values())] for candidate in best]}


def execution_order(layers: Layers, calibration: Calibration) -> list[str]:
    """Layers in the order in which a forward pass runs them, those that it does not run at the end."""
    order: list[str] = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, _inputs, name=name: order.append(name))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            calibration.losses(calibration.ordinary, slice(0, 1))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys([*order, *layers]))


@contextmanager
def restored(layers: Layers) -> Iterator[dict[str, Tensor]]:
    """The layers' weights, which stand in their places again, bit for bit, at the end of the block."""
    originals = {name: layer.weight.data for name, layer in layers.items()}
    try:
        yield originals
    finally:
        for name, layer in layers.items():
            layer.weight.data = originals[name]
