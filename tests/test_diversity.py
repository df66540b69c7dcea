"""Several winners that differ: maximal marginal relevance, checked against all subsets and in searches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from test_copy_guard import Light, search, stock
from test_image_filters import SEEDS

from diffkit.errors import InputError
from ttsnap.search.diversity import chosen, marginal_relevance, thumbnails


def by_hand(scores, images, count, diversity):
    """The formula, item by item, in numpy."""
    relevance = (np.array(scores) - min(scores)) / (max(scores) - min(scores))
    flat = [np.asarray(image) - np.asarray(image).mean((1, 2), keepdims=True) for image in images]
    taken = [int(relevance.argmax())]
    while len(taken) < count:
        best, value = -1, -np.inf
        for i in set(range(len(scores))) - set(taken):
            alike = max(
                max(0.0, float((flat[i] * flat[j]).sum() / np.sqrt((flat[i] ** 2).sum() * (flat[j] ** 2).sum())))
                for j in taken
            )
            if (1 - diversity) * relevance[i] - diversity * alike > value:
                best, value = i, (1 - diversity) * relevance[i] - diversity * alike
        taken.append(best)
    return sorted(taken, key=lambda i: -scores[i])


@pytest.mark.parametrize("diversity", [0.2, 0.5, 0.9])
def test_the_choice_is_the_formula_on_thumbnails(diversity):
    source = torch.Generator().manual_seed(3)
    base = torch.rand(3, 3, 12, 12, generator=source)
    images = torch.cat([base, base + 0.1 * torch.rand(3, 3, 12, 12, generator=source)])  # three pairs of twins
    scores = torch.rand(6, generator=source).tolist()
    ranked = sorted(range(6), key=lambda i: -scores[i])
    got = chosen(ranked, dict(enumerate(scores)), dict(enumerate(images)), [], count=3, diversity=diversity)
    assert got == by_hand(scores, images, 3, diversity)


def test_no_diversity_is_the_ranking_and_lower_may_be_better():
    images = dict(enumerate(torch.rand(4, 3, 16, 16)))
    scores = {0: 0.4, 1: 0.1, 2: 0.3, 3: 0.2}
    assert chosen([1, 3, 2, 0], scores, images, [], count=2, diversity=0.0) == [1, 3]
    images[3] = images[1]
    assert chosen([1, 3, 2, 0], scores, images, [], count=2, diversity=0.5) == [1, 2]
    assert chosen([1, 3, 2, 0], scores, images, [3, 2, 0], count=2, diversity=0.5) == [1, 3]  # flagged come last


def test_full_diversity_takes_the_least_alike():
    similarity = torch.tensor([[1.0, 0.2, 0.8], [0.2, 1.0, 0.1], [0.8, 0.1, 1.0]])
    pairs = [pair for pair in itertools.combinations(range(3), 2) if 0 in pair]
    best = min(pairs, key=lambda pair: float(similarity[pair]))
    assert tuple(marginal_relevance(torch.tensor([1.0, 0.0, 0.9]), similarity, 2, 1.0)) == best


def test_winners_of_a_search_differ_and_stay_the_stock_images():
    plain, out = search(num_images_per_prompt=2), search(num_images_per_prompt=2, diversity=0.9)
    ranked = sorted(SEEDS, key=lambda seed: -float(stock()[seed].mean()))
    described = thumbnails(stock())
    alike = {seed: max(0.0, float(described[ranked[0]] @ described[seed])) for seed in ranked[1:]}
    light = {seed: float(stock()[seed].mean()) for seed in ranked}
    span = light[ranked[0]] - light[ranked[-1]]
    second = max(alike, key=lambda seed: 0.1 * (light[seed] - light[ranked[-1]]) / span - 0.9 * alike[seed])
    assert plain.seeds == ranked[:2]
    assert out.seeds == [ranked[0], second] != plain.seeds
    assert (out.images == stock()[out.seeds].permute(0, 2, 3, 1).numpy()).all()
    assert out.rewards == sorted(out.rewards, reverse=True)
    assert out.trace[-1].survivors == [SEEDS.index(seed) for seed in out.seeds]
    assert out.ledger.cost == plain.ledger.cost


def test_one_winner_is_the_best_and_copies_are_no_choice():
    assert search(diversity=1.0).seeds == search().seeds
    most = float(stock().mean((1, 2, 3)).median()) + 1e-4
    guarded = search(Light(most), num_images_per_prompt=3, diversity=1.0)
    assert all(float(stock()[seed].mean()) <= most + 1e-3 for seed in guarded.seeds)


@pytest.mark.parametrize("strategy", ["zero-order", "halving"])
def test_other_strategies_choose_too(strategy):
    options = {"seeds": None, "num_candidates": None, "seed": 1, "search": strategy, "budget": "8x"}
    plain = search(num_images_per_prompt=2, **options)
    out = search(num_images_per_prompt=2, diversity=0.9, **options)
    assert out.rewards[0] == plain.rewards[0]
    assert out.rewards[1] <= plain.rewards[1]


def test_what_is_no_share_is_refused():
    with pytest.raises(InputError, match=r"diversity must lie in \[0, 1\], got 2"):
        search(diversity=2.0)
