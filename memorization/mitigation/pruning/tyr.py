"""Týr: search how a global sparsity is best spread over layers, on a supernet of pruned versions of every layer.

Li et al., "Týr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization", 2025 (arXiv
2503.09657). Prune and search, from coarse to fine steps of a layer's share:

1. Supernet: every layer in versions at the shares ``r + j * step``, j = -2..2, around its present share r. A layer's
   versions are chosen on the inputs that it gets when the layers below are pruned too, at the expectation over their
   versions (:func:`expected_weight`), so that errors accumulate as they will.
2. Evolution: allocations within the supernet, changed by moves of one step from one layer to another, which keep the
   overall sparsity (:func:`moved`); the fittest quarter of each generation goes on (:func:`next_generation`).

Where we differ from the authors: single weights in place of heads and channels, so that a saliency's order of a layer's
weights holds its versions at every share; the remaining weights are not updated, since a mask is all that is kept;
layers of different sizes exchange equal numbers of weights, a step of the smaller one; the layers of a module are taken
together; and the fitness is an objective of :mod:`memorization.mitigation.pruning.objectives` in place of the distance
of hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from memorization.mitigation.pruning.allocation import Counts

__all__ = ["Bounds", "Candidate", "bounds_around", "expected_weight", "moved", "next_generation", "ranks"]

REACH = 2  # steps to each side of a layer's present share in the supernet
Bounds = dict[str, tuple[int, int]]  # fewest and most weights off


class Candidate(NamedTuple):
    """An allocation and its fitness, lower = better."""

    counts: Counts
    fitness: float


def ranks(scores: Tensor) -> Tensor:
    """Place of each weight in rising order, int32, shaped as the scores; a version with n off has ``ranks < n`` off."""
    places = torch.empty(scores.numel(), dtype=torch.int32, device=scores.device)
    places[scores.flatten().argsort(stable=True)] = torch.arange(len(places), dtype=torch.int32, device=scores.device)
    return places.view_as(scores)


def bounds_around(counts: Counts, sizes: Mapping[str, int], step: float) -> Bounds:
    """Fewest and most weights off of each layer in the supernet around an allocation."""
    reach = {name: round(REACH * step * size) for name, size in sizes.items()}
    return {
        name: (max(0, counts[name] - reach[name]), min(size, counts[name] + reach[name]))
        for name, size in sizes.items()
    }


def expected_weight(weight: Tensor, places: Tensor, count: int, step: float) -> Tensor:
    """Mean of a layer's versions: each weight times the share of the versions in which it is on.

    Args:
        weight: (out, in, ...).
        places: its :func:`ranks`.
        count: weights off at the present share.
        step: distance of the versions' shares.
    """
    n = weight.numel()
    versions = [min(max(count + round(j * step * n), 0), n) for j in range(-REACH, REACH + 1)]
    kept = torch.stack([places >= off for off in versions]).float().mean(0)
    return weight * kept.to(weight.dtype)


def moved(counts: Counts, sizes: Mapping[str, int], bounds: Bounds, step: float, source: torch.Generator) -> Counts:
    """The allocation after one to an eighth as many moves as there are layers; the total and the bounds are kept.

    A move switches weights of one layer off and as many of another on, ``step`` of the smaller one or fewer at a bound.
    """
    names, changed = list(sizes), dict(counts)
    if len(names) < 2:
        return changed
    moves = 1 + int(torch.randint(max(1, len(names) // 8), (), generator=source))
    for _ in range(moves):
        up, down = (names[place] for place in torch.randperm(len(names), generator=source)[:2].tolist())
        weights = max(1, round(step * min(sizes[up], sizes[down])))
        weights = min(weights, bounds[up][1] - changed[up], changed[down] - bounds[down][0])
        changed[up] += weights
        changed[down] -= weights
    return changed


def next_generation(
    survivors: Sequence[Candidate],
    sizes: Mapping[str, int],
    bounds: Bounds,
    *,
    step: float,
    population: int,
    fitness: Callable[[Counts], float],
    source: torch.Generator,
) -> list[Candidate]:
    """The fittest quarter of survivors and their children, the best first; never worse than the best survivor.

    Args:
        survivors: of the generation before, at least one.
        population: survivors and children together.
        fitness: of an allocation; called for each child.
        source: of the moves.
    """
    everyone = list(survivors)
    for place in range(population - len(survivors)):
        parent = survivors[place % len(survivors)]
        child = moved(parent.counts, sizes, bounds, step, source)
        everyone.append(Candidate(child, fitness(child)))
    everyone.sort(key=lambda candidate: candidate.fitness)
    return everyone[: max(1, population // 4)]
