"""One contract for all searches: exact cost, no overrun, the same again by the seed, winners that come back."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_pipeline, tiny_vae
from tiny_index import book

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError, ScoringError
from diffkit.latents import decode_latents
from diffkit.ledger import Cost
from diffkit.seeds import generators
from diffkit.segments import Denoising
from ttsnap import PruningSchedule, TTSnapPipeline
from ttsnap.search.config import SearchConfig
from ttsnap.search.noise import Noise, Recipe, mix, replay
from ttsnap.search.registry import SEARCHES, load_search, search_names
from ttsnap.search.request import Request
from ttsnap.search.strategies.base import Plain
from ttsnap.search.strategies.lookahead import drafts
from ttsnap.search.strategies.noise_search import Neighbours
from ttsnap.search.strategies.rounds import Rounds
from ttsnap.search.strategies.successive_halving import halving_schedule

PROMPTS, STEPS, SEED = ["a dog", "cat"], 6, 7
SCHEDULE = PruningSchedule.parse("1:0.4,3:0.5")
OWN_SCHEDULE = {"lookahead": None}
SHARING = ["adaptive"]  # prompts share one total
CONTRACT = [*SEARCHES.names(), *SHARING]


class Brightness:
    """Mean of the image; of estimates too, less a number, so that the two are told apart."""

    name, higher_is_better, range, flops_per_image = "brightness", True, (-10.0, 10.0), 1000.0

    def score(self, images, prompts):
        return images.mean((1, 2, 3)) * 10

    def score_estimates(self, images, prompts, log_snr):
        return self.score(images, prompts) - 9


class Counted:
    """The tiny pipeline, with every row that goes through its denoiser and decoders counted by hooks."""

    def __init__(self) -> None:
        stock = tiny_pipeline("euler-ancestral")
        self.pipe = TTSnapPipeline.from_pipe(stock, reward=Brightness())
        self.rows, self.images, self.previews, self.looks = [], [], [], []
        self.preview = tiny_vae()
        stock.unet.register_forward_hook(lambda module, args, output: self.rows.append(len(args[0])))
        stock.vae.decoder.register_forward_hook(lambda module, args, output: self.images.append(len(args[0])))
        self.preview.decoder.register_forward_hook(lambda module, args, output: self.previews.append(len(args[0])))

    def search(self, name, budget="5x", *, reward=None, preview=False, prompts=PROMPTS, winners=1, micro_batch=3):
        for log in (self.rows, self.images, self.previews, self.looks):
            log.clear()
        strategy = load_search(name, OWN_SCHEDULE.get(name, SCHEDULE), index=book())
        config = SearchConfig(
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            winners=winners,
            budget=budget,
            micro_batch=micro_batch,
            preview_vae=self.preview if preview else None,
            on_look=lambda pipe, look: self.looks.append((look.prompt, look.step, *look.candidates)),
        )
        request = Request(prompts, reward or Brightness(), Noise(seed=SEED), config, search=strategy)
        return request.carry_out(self.pipe, super(TTSnapPipeline, self.pipe).__call__)


@functools.cache
def counted() -> Counted:
    return Counted()


LOOKS: dict[str, list[tuple[int, ...]]] = {}  # by search: prompt, step and candidates of each look that was shown


@functools.cache
def found(name: str, preview: bool = False):
    """A search's outcome, and the rows that really ran: denoiser, decoder, preview decoder."""
    result = counted().search(name, preview=preview)
    LOOKS[name] = list(counted().looks)
    return result, (sum(counted().rows), sum(counted().images), sum(counted().previews))


@pytest.mark.parametrize("name", CONTRACT)
def test_a_callback_hears_of_every_look(name):
    """Index rules look at one candidate after the other; their traces are merged by step afterwards."""
    result, _ = found(name)
    looks = sorted((prompt, step, index) for prompt, step, *indices in LOOKS[name] for index in indices)
    assert looks == sorted((look.prompt, look.step, index) for look in result.trace for index in look.candidates)


@pytest.mark.parametrize("preview", [False, True])
@pytest.mark.parametrize("name", CONTRACT)
def test_what_is_counted_is_what_ran_and_no_budget_is_overrun(name, preview):
    result, (rows, images, previews) = found(name, preview)
    ledger = result.ledger
    assert ledger.denoiser_rows == rows
    assert ledger.decoded == images
    assert previews - 1 <= ledger.previewed <= previews
    assert functools.reduce(Cost.plus, result.spent) == ledger.cost
    limit = 5 * Cost(STEPS, 1, 1).at(ledger.flops)
    spent = [cost.at(ledger.flops) for cost in result.spent]
    assert min(spent) > 0
    assert sum(spent) <= 2 * limit if name in SHARING else max(spent) <= limit
    assert ledger.budget["limit"] == pytest.approx(2 * limit)
    assert ledger.budget["spent"] + ledger.budget["unspent"] == pytest.approx(2 * limit)
    assert ledger.budget["unspent"] >= 0
    assert ledger.cost.verified == sum(len(look.candidates) for look in result.trace)


@pytest.mark.parametrize("name", CONTRACT)
def test_the_budget_is_used(name):
    """What is left would not pay for one more candidate denoised to the end."""
    result, _ = found(name)
    calls = [cost.calls / STEPS for cost in result.spent]
    assert 10 - sum(calls) < 1.5 if name in SHARING else min(calls) > 3.5


@pytest.mark.parametrize("name", CONTRACT)
def test_winner_comes_back_from_what_is_reported(name):
    result, _ = found(name)
    stock = tiny_pipeline("euler-ancestral")
    denoising = Denoising(STEPS, 3.0, micro_batch=1)
    for prompt, [winner] in zip(PROMPTS, result.winners, strict=True):
        if winner.recipe is None:
            [image] = stock(
                prompt, num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt",
                generator=generators([winner.candidate.seed])[0],
            ).images  # fmt: skip
        else:
            again = replay(winner.recipe, stock, encode_prompts(stock, [prompt]), denoising, (1, 4, 16, 16), STEPS)
            [image] = decode_latents(stock, again.latents).detach()
        assert (image - winner.image).abs().max() < 1 / 255
        assert winner.score == pytest.approx(float(image.mean()) * 10, abs=1e-3)


@pytest.mark.parametrize("name", SEARCHES.names())
def test_the_same_seed_finds_the_same_whatever_stands_beside_it(name):
    result, _ = found(name)
    alone = counted().search(name, prompts=PROMPTS[:1], micro_batch=2)
    assert alone.winners[0][0].score == pytest.approx(result.winners[0][0].score, abs=1e-4)
    assert alone.winners[0][0].recipe == result.winners[0][0].recipe
    assert alone.winners[0][0].candidate.seed == result.winners[0][0].candidate.seed
    assert alone.spent == result.spent[:1]


@pytest.mark.parametrize("name", SEARCHES.names())
def test_winner_is_the_best_of_the_finished_and_several_may_win(name):
    result = counted().search(name, winners=2, prompts=PROMPTS[:1])
    last = [score for look in result.trace if look.step == STEPS - 1 for score in look.scores]
    assert [winner.score for winner in result.winners[0]] == sorted(last, reverse=True)[:2]


@pytest.mark.parametrize("name", CONTRACT)
def test_too_small_budgets_and_seconds_are_refused(name):
    with pytest.raises(InputError, match="too small for one candidate"):
        counted().search(name, "0.5x")
    assert not counted().rows
    if name != "lookahead":
        with pytest.raises(InputError, match="counted cost"):
            counted().search(name, "5s")
        assert not counted().rows


@pytest.mark.parametrize("name", CONTRACT)
def test_nan_never_wins_and_all_nan_is_an_error(name):
    class Moody(Brightness):
        def score(self, images, prompts):
            scores = super().score(images, prompts)
            return torch.where(scores == scores.max(), torch.nan, scores) if len(scores) > 1 else scores

    class Mute(Brightness):
        def score(self, images, prompts):
            return torch.full((len(images),), torch.nan)

    result = counted().search(name, reward=Moody(), prompts=PROMPTS[:1])
    assert math.isfinite(result.winners[0][0].score)
    with pytest.raises(ScoringError, match="could be scored"):
        counted().search(name if name != "ttsnap" else "ttsp", reward=plain(Mute()), prompts=PROMPTS[:1])


def plain(reward):
    """The reward without its knowledge of noise."""

    class Without:
        name, higher_is_better, range, flops_per_image = "plain", True, (0.0, 1.0), 1000.0

        def score(self, images, prompts):
            return reward.score(images, prompts)

    return Without()


def test_ttsnap_asks_for_a_reward_that_knows_noise_and_ttsp_ignores_that_it_does():
    with pytest.raises(InputError, match="knows noise levels"):
        counted().search("ttsnap", reward=plain(Brightness()))
    aware, ignored = found("ttsnap")[0], found("ttsp")[0]
    assert max(aware.trace[0].scores) < 0 < min(ignored.trace[0].scores)
    assert [len(look.candidates) for look in aware.trace] == [len(look.candidates) for look in ignored.trace]
    assert min(winner.score for winners in aware.winners for winner in winners) > 0


def test_lookahead_judges_the_images_ahead_by_the_plain_reward_and_takes_no_other_schedule():
    result, _ = found("lookahead")
    assert [(look.step, look.lookahead) for look in result.trace[::2]] == [(0, 2), (STEPS - 1, 0)]
    assert min(score for look in result.trace for score in look.scores) > 0  # of estimates the reward takes 9 away
    assert result.notes["schedule"] == "0:0.1429+2"
    assert counted().search("lookahead", prompts=PROMPTS[:1], winners=2).notes["schedule"] == "0:0.3333+2"
    assert counted().search("lookahead", "1x", prompts=PROMPTS[:1]).notes["schedule"] == ""
    with pytest.raises(InputError, match="needs a schedule that looks ahead, such as 0:0.07"):
        load_search("lookahead", SCHEDULE)


@given(st.integers(1, 300), st.integers(1, 500), st.integers(1, 4), st.lists(st.integers(0, 2), max_size=1))
def test_drafts_take_at_most_half_of_the_calls_and_leave_what_is_asked_for(calls, candidates, finished, blind):
    schedule = drafts(calls, candidates, finished=finished, blind=blind)
    schedule.validate(calls)
    assert blind or bool(schedule.steps) == (calls >= 4)
    assert not set(schedule.steps) & set(blind)
    for step, ahead in zip(schedule.steps, schedule.calls_ahead, strict=True):
        assert 2 <= step + 1 + ahead <= calls / 2
        assert schedule.survivors(candidates) == [min(candidates, max(finished, round(candidates**0.5 / 2 + 1e-9), 1))]
    assert [str(drafts(steps, 56)) for steps in (50, 20, 8)] == ["1:0.0714+3", "0:0.0714+3", "0:0.0714+3"]


def test_names():
    assert SEARCHES.names() == ["best-of-n", "fk", "halving", "lookahead", "random", "ttsnap", "ttsp", "zero-order"]
    assert set(search_names()) == {*SEARCHES.names(), "adaptive", "index", "index-mean"}
    with pytest.raises(InputError, match="Unknown search 'best'"):
        load_search("best")


@given(st.integers(0, 12), st.integers(1, 200))
def test_halving_looks_rise_and_stretches_cost_about_the_same(looks, calls):
    schedule = halving_schedule(looks, calls)
    schedule.validate(calls)
    assert len(schedule.steps) <= looks
    n = 2 ** len(schedule.steps)
    stages = schedule.stages(n, calls)
    assert stages[-1].candidates == 1
    assert max((stage.stop - stage.start) * stage.candidates for stage in stages) <= 4 * max(calls, n)


def test_halving_of_twenty_steps_by_hand():
    assert halving_schedule(3, 20) == PruningSchedule((1, 4, 9), (0.5, 0.5, 0.5))
    assert halving_schedule(0, 20) == PruningSchedule()


@pytest.mark.parametrize(("name", "parts"), [("zero-order", [4, 1]), ("random", [3, 2])])
def test_rounds_of_neighbours(name, parts):
    result, _ = found(name)
    assert [len(look.candidates) for look in result.trace if look.prompt == 0] == parts
    late = [index for look in result.trace if look.prompt == 0 for index in look.candidates]
    assert late == list(range(5))


def test_pivot_moves_only_to_what_is_better():
    result = counted().search("zero-order", "9x", prompts=PROMPTS[:1], winners=9)
    best, best_chain, seeds = -math.inf, (), {}
    for winner in result.winners[0]:
        seeds[winner.candidate.index] = winner
    for part in Neighbours("zero-order", moving=True).rounds(9):
        chains = {seeds[index].recipe.seeds[:-1] for index in part}
        assert len(chains) == 1
        if best > -math.inf:
            assert chains == {best_chain}
        for index in part:
            if seeds[index].score > best:
                best, best_chain = seeds[index].score, seeds[index].recipe.seeds


@pytest.mark.parametrize("distance", [0.1, 0.3, 1.0])
def test_neighbours_stay_standard_normal_at_their_distance(distance):
    one, two = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    near = mix(one, two, distance)
    assert near.std() == pytest.approx(1, abs=0.01)
    assert np.corrcoef(one, near)[0, 1] == pytest.approx(math.sqrt(1 - distance**2), abs=0.01)


def test_a_recipe_of_one_seed_is_the_seeds_own_noise():
    noise, generator = Recipe((5,)).noise((1, 4, 8, 8), torch.float32)
    source = torch.Generator().manual_seed(5)
    assert torch.equal(noise, torch.randn(1, 4, 8, 8, generator=source))
    assert torch.equal(generator.get_state(), source.get_state())


@pytest.mark.parametrize(("options", "sentence"), [({"distance": 0}, "distance"), ({"per_round": 0}, "at least one")])
def test_neighbours_refuse_what_makes_no_sense(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Neighbours("zero-order", moving=True, **options)


def test_the_pipeline_takes_a_search_by_name():
    pipe = counted().pipe
    out = pipe(PROMPTS, num_inference_steps=STEPS, guidance_scale=3.0, search="zero-order", budget="4x", seed=SEED)
    assert len(out.images) == 2
    assert all(recipe.seeds[-1] == seed for recipe, seed in zip(out.recipes, out.seeds, strict=True))
    assert out.ledger.budget["unspent"] >= 0
    with pytest.raises(InputError, match="give one, for example budget"):
        pipe(PROMPTS, num_inference_steps=STEPS, search="zero-order")


def in_rounds(enough: float, **options):
    """Two rounds at the cost of best-of-5 each."""
    return counted().search(Rounds(enough, rounds=2, schedule=SCHEDULE), "10x", **options)


def test_rounds_go_on_until_the_winner_is_good_enough_for_its_prompt():
    first = counted().search("ttsnap", "5x")
    scores = [winner.score for [winner] in first.winners]
    found = in_rounds(sum(scores) / 2)
    assert functools.reduce(Cost.plus, found.spent) == found.ledger.cost
    assert found.ledger.denoiser_rows == sum(counted().rows)
    assert found.notes["rounds"] == [1 if score > sum(scores) / 2 else 2 for score in scores]
    better, other = (int(pick(scores)) for pick in (np.argmax, np.argmin))
    assert found.spent[better] == first.spent[better]
    assert found.winners[better][0].candidate.seed == first.winners[better][0].candidate.seed
    assert found.spent[other] == first.spent[other].plus(first.spent[other])
    assert found.winners[other][0].score >= scores[other]
    seeds = [seed for look in found.trace if look.prompt == other and look.step == 1 for seed in look.seeds]
    assert len(seeds) == len(set(seeds)) == 2 * len(first.trace[0].candidates)


def test_rounds_without_an_end_stay_inside_the_budget_and_keep_the_best():
    found = in_rounds(100.0, winners=2)
    assert found.notes["rounds"] == [2, 2]
    assert all(spent.at(found.ledger.flops) <= 10 * Cost(STEPS, 1, 1).at(found.ledger.flops) for spent in found.spent)
    for prompt, winners in enumerate(found.winners):
        finals = [score for look in found.trace if (look.prompt, look.step) == (prompt, STEPS - 1)
                  for score in look.scores]  # fmt: skip
        assert [winner.score for winner in winners] == sorted(finals, reverse=True)[:2]


def finals(result, prompt=0):
    """Scores of each look at a prompt's finished images."""
    return [look.scores for look in result.trace if (look.prompt, look.step) == (prompt, STEPS - 1)]


@pytest.mark.parametrize(
    ("budget", "sizes"), [("1x", [1]), ("3x", [1, 1, 1]), ("7x", [1, 2, 2, 2]), ("8x", [2] * 4), ("9.9x", [2, 2, 2, 3])]
)
def test_rounds_use_the_whole_budget(budget, sizes):
    """What a round leaves goes to the later ones, and where a share pays for none there are fewer rounds."""
    result = counted().search(Rounds(100.0, rounds=4), budget, prompts=PROMPTS[:1])
    assert [len(scores) for scores in finals(result)] == sizes
    assert result.notes["rounds"] == [len(sizes)]
    assert result.winners[0][0].score == max(max(scores) for scores in finals(result))
    assert result.ledger.budget["unspent"] >= 0
    seeds = [seed for look in result.trace for seed in look.seeds]
    assert seeds == counted().search("best-of-n", budget, prompts=PROMPTS[:1]).trace[0].seeds


@pytest.mark.parametrize(("winners", "budget", "rounds"), [(1, "5.5x", 4), (2, "10x", 2), (2, "5.5x", 1)])
def test_each_round_by_a_schedule_pays_for_the_images_asked_for(winners, budget, rounds):
    strategy = Rounds(100.0, rounds=4, schedule=SCHEDULE)
    result = counted().search(strategy, budget, winners=winners, prompts=PROMPTS[:1])
    assert result.notes["rounds"] == [rounds]
    assert [len(best) for best in result.winners] == [winners]
    assert 0 <= result.ledger.budget["unspent"] < 1.5 * Cost(STEPS, 1, 1).at(result.ledger.flops)
    if winners == 2:
        with pytest.raises(InputError, match="of which 1 reach the end, fewer than the 2 images asked for; raise it"):
            counted().search(strategy, "2.5x", winners=2, prompts=PROMPTS[:1])


class Tired(Brightness):
    """Scores the finished images of one round, and no more."""

    def __init__(self, images):
        self.left = images

    def score(self, images, prompts):
        self.left -= len(images)
        return super().score(images, prompts) * (1.0 if self.left >= 0 else math.nan)

    def score_estimates(self, images, prompts, log_snr):
        return images.mean((1, 2, 3))


def test_a_round_that_cannot_be_scored_leaves_what_the_earlier_ones_found():
    first = counted().search("ttsnap", "5x")
    finals = sum(len(look.candidates) for look in first.trace if look.step == STEPS - 1)
    found = in_rounds(100.0, reward=Tired(1 + finals))  # one is tried before the search
    assert found.notes["rounds"] == [1, 1]
    assert [w.candidate.seed for [w] in found.winners] == [w.candidate.seed for [w] in first.winners]
    assert functools.reduce(Cost.plus, found.spent) == found.ledger.cost
    with pytest.raises(ScoringError, match="could be scored"):
        in_rounds(100.0, reward=Tired(1))


class Gaps(Brightness):
    """Cannot score some finished images of one prompt: the given ones, in the order in which they come."""

    def __init__(self, prompt, missing):
        tried = 2 if prompt == PROMPTS[0] else 0  # images before the search
        self.prompt, self.missing, self.seen = prompt, missing, -1 - tried

    def score(self, images, prompts):
        scores = super().score(images, prompts)
        for row, prompt in enumerate(prompts):
            if prompt == self.prompt:
                self.seen += 1
                scores[row] = math.nan if self.seen in self.missing else scores[row]
        return scores

    def score_estimates(self, images, prompts, log_snr):
        return images.mean((1, 2, 3))


@pytest.mark.parametrize("name", ["rounds", "random", "zero-order"])
def test_a_prompt_that_cannot_be_scored_for_a_while_goes_on_and_so_do_the_others(name):
    strategy = Rounds(100.0, rounds=2) if name == "rounds" else name
    whole = counted().search(strategy, "8x")
    for missing in (range(4), range(4, 8)):
        result = counted().search(strategy, "8x", reward=Gaps(PROMPTS[1], missing))
        assert [cost.calls for cost in result.spent] == [8 * STEPS] * 2
        assert [w.candidate.seed for w in result.winners[0]] == [w.candidate.seed for w in whole.winners[0]]
        scored = [score for scores in finals(result, 1) for score in scores]
        assert [score is None for score in scored] == [at in missing for at in range(8)]
        assert result.winners[1][0].score == max(score for score in scored if score is not None)
        if name == "rounds":
            assert result.notes["rounds"] == [2, 1]
    with pytest.raises(ScoringError, match="Only 0 of 8 candidates of prompt 1 could be scored after step 5, 1 needed"):
        counted().search(strategy, "8x", reward=Gaps(PROMPTS[1], range(8)))
    assert sum(counted().rows) == 2 * 2 * 8 * STEPS  # guided


def test_a_round_that_ends_at_its_look_is_followed_by_the_next():
    class Blind(Brightness):
        """Sees nothing in the first estimates that it gets of a prompt."""

        looks = -2  # tried before the search

        def score_estimates(self, images, prompts, log_snr):
            seen, self.looks = self.looks, self.looks + len(images)
            rows = torch.arange(seen, self.looks)
            return torch.where(rows < opened, torch.nan, super().score_estimates(images, prompts, log_snr))

    first = counted().search("ttsnap", "5x", prompts=PROMPTS[:1])
    opened = len(first.trace[0].candidates)
    result = in_rounds(100.0, reward=Blind(), prompts=PROMPTS[:1])
    assert result.notes["rounds"] == [1]
    assert result.trace[0].survivors == []
    assert set(result.trace[0].reasons) == set(range(opened))
    assert result.winners[0][0].candidate.index >= opened
    assert result.ledger.denoiser_rows == sum(counted().rows)
    opened = 10**6
    with pytest.raises(ScoringError, match="could be scored after step 1, 1 needed: the reward 'brightness' returned"):
        in_rounds(100.0, reward=Blind(), prompts=PROMPTS[:1])


@pytest.mark.parametrize("strategy", ["best-of-n", "random", "zero-order", Rounds(100.0, rounds=2)])
def test_fewer_scored_images_than_asked_for_are_an_error(strategy):
    most = [0, 1, 2, 3, 4, 6, 7]
    with pytest.raises(ScoringError, match="Only 1 of 8 candidates of prompt 0 could be scored after step 5, 2 needed"):
        counted().search(strategy, "8x", reward=Gaps(PROMPTS[0], most), winners=2, prompts=PROMPTS[:1])
    result = counted().search(strategy, "8x", reward=Gaps(PROMPTS[0], most[1:]), winners=2, prompts=PROMPTS[:1])
    assert sorted(winner.candidate.index for winner in result.winners[0]) == [0, 5]


def test_rounds_refuse_what_never_stops():
    with pytest.raises(InputError, match="enough is a reward"):
        Rounds(math.nan)
    with pytest.raises(InputError, match="at least one round"):
        Rounds(1.0, rounds=0)
    with pytest.raises(InputError, match="needs a reward that knows noise"):
        counted().search(Rounds(1.0, schedule=SCHEDULE), "8x", reward=Plain(Brightness()))
