"""Locality's mathematics against closed forms, brute force and other libraries."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

from diffkit.errors import InputError
from memorization.locality import embeddings as space
from memorization.locality.bootstrap import NOTHING, across, against, off_diagonal_mean, within
from memorization.locality.interpolation import points
from memorization.locality.mask_overlap import agreements, chance_iou, iou
from memorization.locality.settings import LocalitySettings


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------- embeddings


def test_distances_are_scipys_and_gaussians_are_as_far_apart_as_the_formula_says() -> None:
    starts = normal(12, 16, 128) * 0.9
    found = space.pairwise_distance(starts)
    np.testing.assert_allclose(found, squareform(pdist(starts.double().flatten(1).numpy())), atol=1e-9)
    assert off_diagonal_mean(found) == pytest.approx(space.gaussian_distance(16 * 128, 0.9), rel=0.01)


def test_cosines_are_those_of_independent_directions_and_of_parallel_ones() -> None:
    random = space.pairwise_cosine(normal(40, 2048))
    apart = random[~torch.eye(40, dtype=torch.bool)]
    assert abs(float(apart.mean())) < 3 / math.sqrt(2048)
    assert float(apart.std()) == pytest.approx(1 / math.sqrt(2048), rel=0.15)
    direction = normal(1, 4, 8)
    parallel = space.pairwise_cosine(torch.tensor([1.0, 2.0, -3.0]).view(3, 1, 1) * direction)
    torch.testing.assert_close(parallel, torch.tensor([[1.0, 1, -1], [1, 1, -1], [-1, -1, 1]]).double())
    assert torch.isnan(space.cosine(torch.zeros(1, 3), torch.ones(1, 3))).all()


@pytest.mark.parametrize("r", [1, 2, 3])
def test_rank_of_matrices_whose_rank_is_known(r: int) -> None:
    rows = torch.linalg.qr(normal(50, r).double())[0].T  # r orthonormal rows
    repeated = rows.repeat(3, 1)
    found = space.rank(repeated)
    assert found is not None
    assert (found.numerical, found.n) == (r, 3 * r)
    assert found.effective == pytest.approx(r)  # all singular values are sqrt(3)
    assert found.first_share == pytest.approx(1 / r)
    assert found.numerical == np.linalg.matrix_rank(repeated.numpy(), tol=1e-4)


def test_effective_rank_of_unequal_directions_by_its_definition() -> None:
    found = space.rank(torch.diag(torch.tensor([3.0, 1.0])))
    assert found is not None
    assert found.effective == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert found.first_share == pytest.approx(0.9)
    assert space.rank(torch.zeros(3, 4)) is None
    with pytest.raises(InputError, match="finite"):
        space.rank(torch.full((2, 2), torch.nan))


def test_points_on_a_line() -> None:
    one, other = normal(3, 4), normal(3, 4, seed=1)
    found = space.between(one, other, (0.0, 0.25, 1.0))
    torch.testing.assert_close(found, torch.stack([one, 0.75 * one + 0.25 * other, other]))


def test_the_points_of_an_image() -> None:
    triggers, starts, caption, fresh = normal(4, 2, 3), normal(4, 2, 3, seed=1), normal(2, 3, seed=2), normal(1, 2, 3)
    found = points(triggers, starts, caption, [0, 2, 3], lines=2, shares=(0.5,), fresh=fresh)
    assert [(p.kind, p.origin, p.end) for p in found] == [
        *[("trigger", 0, 2), ("caption", 0, None), ("start", 0, 2), ("carried", 0, 2)],
        *[("trigger", 2, 3), ("caption", 2, None), ("start", 2, 3), ("carried", 2, 3)],
        ("mean", None, 0),
    ]
    torch.testing.assert_close(found[2].embedding, (triggers[0] + starts[2]) / 2)
    torch.testing.assert_close(found[3].embedding - starts[2], triggers[0] - starts[0])
    moved = ((triggers - starts)[0] + (triggers - starts)[2] + (triggers - starts)[3]) / 3
    torch.testing.assert_close(found[-1].embedding, fresh[0] + moved)
    assert points(triggers, starts, caption, [1], lines=2, shares=(0.5,), fresh=fresh) == []
    pair = points(triggers, starts, caption, [0, 1], lines=5, shares=(0.5,), fresh=fresh[:0])
    assert sum(p.kind == "trigger" for p in pair) == 1  # the way back is the same line


# ------------------------------------------------------------------------------------------------------- weights


@given(st.integers(1, 6), st.data())
@settings(max_examples=40, deadline=None)
def test_chance_agreement_by_trying_all_sets(total: int, data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, total)) for _ in range(2))
    values = [
        len(set(a) & set(b)) / len(set(a) | set(b)) if first + second else None
        for a in combinations(range(total), first)
        for b in combinations(range(total), second)
    ]
    expected = None if first + second == 0 else pytest.approx(np.mean([v for v in values if v is not None]))
    assert chance_iou(total, first, second) == expected


def test_chance_agreement_by_drawing() -> None:
    generator = np.random.default_rng(0)
    pairs = [[set(generator.permutation(500)[:size].tolist()) for size in (60, 40)] for _ in range(3000)]
    drawn = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    assert drawn == pytest.approx(chance_iou(500, 60, 40), abs=0.002)
    assert chance_iou(10**6, 300_000, 300_000) == pytest.approx(0.3 * 0.3 / (0.6 - 0.09), rel=1e-3)
    assert chance_iou(7, 7, 7) == 1.0
    with pytest.raises(InputError, match="between 0 and 5"):
        chance_iou(5, 6, 1)


def test_two_empty_sets_are_missing_not_in_agreement() -> None:
    none, some = torch.zeros(4, dtype=torch.bool), torch.tensor([True, True, False, False])
    assert iou(none, none) is None
    assert iou(none, some) == 0.0
    assert iou(some, some) == 1.0
    found = agreements([{"a": none, "b": some}, {"a": none, "b": some}, {"a": some, "b": ~some}])
    assert torch.isnan(found["a"].iou[:2, :2]).all()
    assert found["a"].iou[0, 2] == 0
    assert found["b"].iou[0].tolist() == [1.0, 1.0, 0.0]
    assert found["b"].chance[0, 1] == pytest.approx(chance_iou(4, 2, 2))
    assert off_diagonal_mean(found["a"].iou) == 0.0  # only the pairs that are there count


def test_selections_must_fit() -> None:
    with pytest.raises(InputError, match="same layers"):
        agreements([{"a": torch.ones(2, dtype=torch.bool)}, {"b": torch.ones(2, dtype=torch.bool)}])
    with pytest.raises(InputError, match="one shape"):
        iou(torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool))


# --------------------------------------------------------------------------------------------------------- nulls


def test_within_counts_what_is_there() -> None:
    found = within([1.0, None, 3.0, float("nan")])
    assert (found.value, found.n) == (2.0, 2)
    assert found.low is not None
    assert found.high is not None
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0
    assert within([None]) == NOTHING


def test_across_leaves_out_the_diagonal_and_pairs_with_itself() -> None:
    matrix = np.full((5, 5), 2.0) + np.eye(5) * 100
    found = across(matrix)
    assert found[:3] == (2.0, 2.0, 2.0)  # a unit drawn twice would bring in the diagonal's 102
    assert across(np.empty((0, 0))) == NOTHING
    assert across([[0.0, None], [None, 0.0]]) == NOTHING


def test_an_interval_over_units_is_wider_than_one_over_pairs() -> None:
    """Distances of points of which a few lie far out: pairs share points, and must not count as independent."""
    place = np.abs(np.random.default_rng(0).normal(size=12)) ** 3
    matrix = np.abs(place[:, None] + place[None])
    found = across(matrix)
    pairs = matrix[np.triu_indices(12, 1)]
    naive = 2 * 1.96 * pairs.std() / math.sqrt(len(pairs))
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low > naive


def test_against_a_null() -> None:
    half = against([1.0, 1.0, 1.0], null=[2.0, 2.0])
    assert half[:3] == (0.5, 0.5, 0.5)
    assert half.n == 2
    matrix = np.array([[0, 0.2, 0.2], [0.2, 0, 0.2], [0.2, 0.2, 0]])
    assert against([0.5, 0.7], matrix=matrix, how="difference").value == pytest.approx(0.4)
    assert against([1.0], null=[0.0]) == NOTHING
    assert against([1.0], null=[0.0], how="difference").value == 1.0
    assert against([], null=[1.0]) == against([1.0], null=[]) == NOTHING
    assert against([1.0], matrix=np.empty((0, 0))) == NOTHING


def test_intervals_cover() -> None:
    """At 12 images a bootstrap interval of a ratio of equal means holds 1 about nine times in ten."""
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(60):
        one, other = generator.normal(10, 1, 12), generator.normal(10, 1, 12)
        found = against(list(one), null=list(other), seed=seed)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1 <= found.high
    assert held >= 48


@pytest.mark.parametrize(
    "wrong",
    [{"starts": 1}, {"group": 1}, {"shares": (0.0,)}, {"methods": ("nemo", "nemo")}, {"reached": 0.0}, {"draws": 0}],
)
def test_settings_that_cannot_be_meant(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        LocalitySettings(**wrong)  # type: ignore[arg-type]
