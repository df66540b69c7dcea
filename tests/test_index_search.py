"""The index rule in the pipeline: counted cost, no overrun, winners that the stock pipeline makes again."""

from __future__ import annotations

import functools

import pytest
from test_strategies import PROMPTS, STEPS, Counted
from tiny import tiny_pipeline
from tiny_index import LOOKS, book

from diffkit.errors import InputError
from diffkit.ledger import Cost
from diffkit.seeds import generators
from ttsnap.schedules.index_book import IndexBook
from ttsnap.schedules.score_model import ScoreModel
from ttsnap.search.strategies.index import IndexSearch


@functools.cache
def found(hard: bool, preview: bool = False):
    counted = Counted()
    result = counted.search(IndexSearch(book(), hard), preview=preview)
    return result, (sum(counted.rows), sum(counted.images), sum(counted.previews))


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_what_is_counted_is_what_ran_and_no_budget_is_overrun(hard, preview):
    result, (rows, images, previews) = found(hard, preview)
    ledger = result.ledger
    assert ledger.denoiser_rows == rows
    assert images - 1 <= ledger.decoded <= images
    assert previews - 1 <= ledger.previewed <= previews
    assert functools.reduce(Cost.plus, result.spent) == ledger.cost
    assert ledger.cost.verified == sum(len(look.candidates) for look in result.trace)
    most = (1 if hard else book().cap) * 5 * Cost(STEPS, 1, 1).at(ledger.flops)
    assert all(0 < spent.at(ledger.flops) <= most * (1 + 1e-9) for spent in result.spent)
    if hard:
        assert all(5 - spent.calls / STEPS < 1.5 for spent in result.spent)


def test_winner_is_the_best_finished_one_and_comes_back_from_its_seed():
    result, _ = found(True)
    stock = tiny_pipeline("euler-ancestral")
    for prompt, [winner] in enumerate(result.winners):
        ends = [look.scores[look.candidates.index(index)] for look in result.trace
                if look.step == STEPS - 1 and look.prompt == prompt for index in look.candidates]  # fmt: skip
        assert winner.score == max(ends)
        [image] = stock(
            PROMPTS[prompt], num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt",
            generator=generators([winner.candidate.seed])[0],
        ).images  # fmt: skip
        assert (image - winner.image).abs().max() < 1 / 255


def test_the_same_whatever_stands_beside_it():
    result, _ = found(True)
    alone = Counted().search(IndexSearch(book()), prompts=PROMPTS[:1], micro_batch=2)
    assert alone.winners[0][0].candidate.seed == result.winners[0][0].candidate.seed
    assert alone.spent == result.spent[:1]


def test_refusals():
    with pytest.raises(InputError, match="too small for one candidate"):
        Counted().search(IndexSearch(book()), "0.5x")
    with pytest.raises(InputError, match="looks for one image"):
        Counted().search(IndexSearch(book()), winners=2)
    other = book()
    model = ScoreModel(LOOKS, 9, other.model.mean, other.model.between, other.model.within, 4.0)
    with pytest.raises(InputError, match="fitted for 9"):
        Counted().search(IndexSearch(IndexBook(model, other.costs, other.entries)))
