"""The pool of searches against torch's own Adam, and what it hands out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memorization.mitigation.adversarial.trigger_pool import ANYTHING, TRIGGERS, Searches, Starts, TriggerPool, adam


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pool(
    images: int = 3, searches: int = 2, length: int = 10, kinds: tuple[str, ...] = ("prompt", "other")
) -> TriggerPool:
    captions, others = torch.randn(images, 4, 5, generator=seeded(1)), torch.randn(7, 4, 5, generator=seeded(2))
    starts = Starts(captions, others, kinds)
    return TriggerPool(starts, searches=searches, length=length, learning_rate=0.1, generator=seeded(3))


def test_every_search_steps_as_if_it_ran_alone_by_torchs_adam() -> None:
    starts = torch.randn(3, 4, 5, generator=seeded())
    searches = Searches.begin(starts.clone(), torch.tensor([9, 9, 9]))
    alone = [start.clone().requires_grad_(True) for start in starts]
    optimizers = [torch.optim.Adam([value], lr=0.1) for value in alone]
    generator = seeded(1)
    for rows in ([0, 2], [1], [0, 1, 2], [2, 0], [1]):
        gradient = torch.randn(len(rows), 4, 5, generator=generator)
        adam(searches, torch.tensor(rows), gradient, 0.1)
        for row, own in zip(rows, gradient, strict=True):
            alone[row].grad = own.clone()
            optimizers[row].step()
    torch.testing.assert_close(searches.embeddings, torch.stack([value.detach() for value in alone]))
    assert searches.ages.tolist() == [3, 3, 3]


@given(images=st.integers(1, 5), searches=st.integers(1, 4), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_chosen_searches_are_distinct_and_serve_every_image_before_one_twice(
    images: int, searches: int, n: int, seed: int
) -> None:
    rows = pool(images, searches).choose(n, seeded(seed)).tolist()
    assert len(rows) == min(n, images * searches)
    assert len(set(rows)) == len(rows)
    for first in range(0, len(rows), images):
        served = [row % images for row in rows[first : first + images]]
        assert len(set(served)) == len(served)


def quadratic(target: Tensor) -> object:
    return lambda images, rows: (rows.prompt_embeds - target[images]).square().flatten(1).mean(1)


def test_searches_go_downhill_and_begin_anew_at_their_length() -> None:
    made, target = pool(2, 2, length=6), torch.zeros(2, 4, 5)
    assert made.state.lengths.tolist() == [3, 3, 6, 6]
    rows = torch.arange(4)
    losses = [made.advance(rows, quadratic(target), seeded(i)) for i in range(3)]  # type: ignore[arg-type]
    assert losses == sorted(losses, reverse=True)
    begun = made.state.starts.clone()
    assert not torch.equal(begun, made.state.embeddings)
    made.advance(rows, quadratic(target), seeded(9))  # type: ignore[arg-type]
    assert made.state.ages.tolist() == [1, 1, 4, 4]
    assert torch.equal(begun[2:], made.state.starts[2:])


def test_the_searches_not_asked_for_stand_still() -> None:
    made = pool(3, 2)
    before = {name: value.clone() for name, value in made.state.tensors().items()}
    made.advance(torch.tensor([1, 5]), quadratic(torch.zeros(3, 4, 5)), seeded())  # type: ignore[arg-type]
    still = [0, 2, 3, 4]
    assert all(torch.equal(value[still], before[name][still]) for name, value in made.state.tensors().items())
    assert made.state.ages.tolist() == [0, 1, 0, 0, 0, 1]


def test_training_embeddings_hold_the_caption_and_points_along_the_search() -> None:
    made = pool(1, 1, kinds=("other",))
    made.advance(torch.tensor([0]), quadratic(torch.zeros(1, 4, 5)), seeded())  # type: ignore[arg-type]
    drawn = made.embeddings(torch.zeros(400, dtype=torch.long), TRIGGERS, seeded(4)).prompt_embeds
    begun, now, caption = made.state.starts[0], made.state.embeddings[0], made.starts.captions.prompt_embeds[0]

    def share(point: Tensor) -> float:
        return float((drawn == point).flatten(1).all(1).float().mean())

    assert share(caption) == pytest.approx(TRIGGERS["caption"], abs=0.07)
    assert share(now) == pytest.approx(TRIGGERS["current"], abs=0.08)
    assert share(begun) == 0
    along = (now - begun) / (now - begun).norm()
    rest = drawn - begun
    distance = (rest - (rest * along).sum((1, 2), keepdim=True) * along).flatten(1).norm(dim=1)
    line = float((distance < 1e-4).float().mean())
    assert line == pytest.approx(TRIGGERS["current"] + TRIGGERS["path"], abs=0.07)


def test_where_the_image_is_to_be_seen_fresh_starts_come_in() -> None:
    made = pool(1, 1, kinds=("other",))
    made.advance(torch.tensor([0]), quadratic(torch.zeros(1, 4, 5)), seeded())  # type: ignore[arg-type]
    drawn = made.embeddings(torch.zeros(400, dtype=torch.long), ANYTHING, seeded(4)).prompt_embeds
    fresh = (drawn[:, None] == made.starts.others.prompt_embeds[None]).flatten(2).all(2).any(1)
    assert float(fresh.float().mean()) == pytest.approx(ANYTHING["fresh"], abs=0.07)


def test_a_gaussian_start_has_the_spread_of_real_embeddings() -> None:
    others = 3 + 2 * torch.randn(50, 16, 32, generator=seeded())
    starts = Starts(torch.zeros(1, 16, 32), others, ("gaussian",))
    drawn = torch.cat([starts.draw(0, seeded(i)).prompt_embeds for i in range(20)])
    assert float(drawn.mean()) == pytest.approx(3, abs=0.05)
    assert float(drawn.std()) == pytest.approx(2, abs=0.05)
