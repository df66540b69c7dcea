"""The mathematics of the attacks against closed forms, brute force and independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import SCHEDULERS, tiny_pipeline
from torch import Tensor

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds
from memorization.attack.base import Target
from memorization.attack.hard_tokens import HardTokens, nearest
from memorization.attack.low_rank import LowRank
from memorization.attack.norm_bounded import NormBounded, project
from memorization.attack.objective import Objective, frozen, objective
from memorization.attack.soft_tokens import SoftTokens4
from memorization.attack.token_embeddings import TextSpace, typeable
from memorization.attack.words import Words, choose


def some_targets(n: int, *, text: str | None = None) -> list[Target]:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(n, 3, 64, 64, generator=generator)
    starts = torch.randn(n, 16, 32, generator=generator)
    return [Target(images[i], starts[i], seed=i, text=text) for i in range(n)]


class TestObjective:
    def linear(self, rows: int) -> Objective:
        """A denoiser that adds the embedding's mean: the loss is a parabola whose gradient we know."""

        def denoiser(noisy: Tensor, _: Tensor, embeddings: Embeds) -> Tensor:
            return 0 * noisy + embeddings.prompt_embeds.mean((1, 2)).view(-1, 1, 1, 1)

        return Objective(denoiser, torch.zeros(3, 4, 6, 6), SCHEDULERS["ddim"](), rows=rows)

    @pytest.mark.parametrize("rows", [1, 4, 7, 100])
    def test_gradient_in_closed_form(self, rows: int) -> None:
        loss = self.linear(rows)
        sources = [torch.Generator().manual_seed(i) for i in range(3)]
        drawn = loss.draw(sources, 5)
        embeddings = torch.randn(3, 2, 3)
        mean, noise = embeddings.mean((1, 2)), drawn.noise.mean((1, 2, 3, 4))
        wanted = (2 * (mean - noise) / 6).view(3, 1, 1).expand(3, 2, 3)
        torch.testing.assert_close(loss.gradient(embeddings, drawn)["prompt_embeds"], wanted)

    @pytest.mark.parametrize("rows", [1, 4, 100])
    def test_loss_of_candidates_in_closed_form(self, rows: int) -> None:
        loss = self.linear(rows)
        drawn = loss.draw([torch.Generator().manual_seed(i) for i in range(3)], 5)
        embeddings = torch.randn(3, 4, 2, 3)
        means = embeddings.mean((2, 3))
        wanted = torch.stack(
            [torch.stack([(drawn.noise[b] - means[b, p]).square().mean() for p in range(4)]) for b in range(3)]
        )
        torch.testing.assert_close(loss.loss(embeddings, drawn), wanted)

    def test_blocks_add_up_to_the_gradient_of_the_whole(self) -> None:
        pipe = tiny_pipeline()
        images = torch.stack([target.image for target in some_targets(3)])
        embeddings = torch.stack([target.start for target in some_targets(3)])
        with frozen(pipe):
            whole = objective(pipe, images, rows=100)
            drawn = whole.draw([torch.Generator().manual_seed(i) for i in range(3)], 4)
            expected = whole.gradient(embeddings, drawn)
            for rows in (1, 5, 12):
                found = objective(pipe, images, rows=rows).gradient(embeddings, drawn)
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)

    def test_scale_is_taken_out_again(self) -> None:
        plain, scaled = self.linear(8), self.linear(8)
        scaled.scale = 2.0**14
        drawn = plain.draw([torch.Generator().manual_seed(i) for i in range(3)], 2)
        embeddings = torch.randn(3, 2, 3)
        one, other = (loss.gradient(embeddings, drawn)["prompt_embeds"] for loss in (plain, scaled))
        assert torch.equal(one, other)

    def test_stratified_timesteps_stand_one_in_each_part(self) -> None:
        drawn = self.linear(8).draw([torch.Generator().manual_seed(i) for i in range(3)], 10, stratified=True)
        parts = drawn.timesteps // 100
        assert torch.equal(parts, torch.arange(10).expand(3, 10))


class TestNormBounded:
    @given(st.integers(0, 10**6), st.floats(0.01, 3), st.floats(0, 5))
    def test_projection_is_the_nearest_point_of_the_ball(self, seed: int, radius: float, reach: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        centre, direction = torch.randn(1, 3, 4, generator=generator), torch.randn(1, 3, 4, generator=generator)
        moved = centre + reach * direction / direction.norm()
        found = project(moved, centre, torch.tensor([radius]))
        assert (found - centre).norm().item() <= radius * (1 + 1e-4)
        expected = moved if reach <= radius else centre + radius * direction / direction.norm()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("radius", [0.02, 0.2])
    def test_triggers_stay_in_the_ball(self, radius: float) -> None:
        attack = NormBounded(budgets=(0, 1, 8), micro_batch=2, draws=1, learning_rate=0.5, radius=radius)
        for target, found in zip(some_targets(2), attack(tiny_pipeline(), some_targets(2)), strict=True):
            moved = (found.embeddings - target.start).flatten(1).norm(dim=1) / target.start.norm()
            assert moved[2].item() == pytest.approx(radius, rel=1e-3)

    def test_radius_is_checked(self) -> None:
        with pytest.raises(InputError, match="radius"):
            NormBounded(radius=0)


class TestLowRank:
    @pytest.mark.parametrize("rank", [1, 3])
    def test_the_displacement_has_that_rank(self, rank: int) -> None:
        attack = LowRank(budgets=(0, 6), micro_batch=1, draws=1, rank=rank)
        (found,) = attack(tiny_pipeline(), some_targets(1))
        singular = torch.linalg.svdvals((found.embeddings[1] - found.embeddings[0]).double())
        assert int((singular > 1e-5 * singular[0]).sum()) == rank

    def test_rank_is_checked(self) -> None:
        with pytest.raises(InputError, match="rank"):
            LowRank(rank=0)


class TestTextSpace:
    def test_ids_and_vectors_are_encoded_as_the_pipeline_does(self) -> None:
        pipe = tiny_pipeline()
        text = TextSpace(pipe)
        for caption in ("a cat at dog", "!", "x " * 14):
            wanted = pipe.encode_prompt([caption], "cpu", 1, False)[0]
            ids = text.ids(caption)[None]
            torch.testing.assert_close(text.encode_ids(ids).prompt_embeds, wanted)
            torch.testing.assert_close(text.encode_vectors([text.tables[0][ids]]).prompt_embeds, wanted)

    def test_the_gradient_passes_through_the_encoder(self) -> None:
        text = TextSpace(tiny_pipeline())
        vectors = text.tables[0][text.ids("a cat")][None].double().float().requires_grad_(True)
        probe = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))

        def encode(given: Tensor) -> Tensor:
            return text.encode_vectors([given]).prompt_embeds

        (gradient,) = torch.autograd.grad((encode(vectors) * probe).sum(), [vectors])
        direction = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            step = 1e-3
            up, down = encode(vectors + step * direction), encode(vectors - step * direction)
        slope = ((up - down) * probe).sum().item() / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2)

    def test_typeable_words_survive_being_typed(self) -> None:
        tokenizer = tiny_pipeline().tokenizer
        found = typeable(tokenizer, len(tokenizer))
        words = {tokenizer.decode([int(i)]).strip() for i in found}
        assert {"a", "cat", "dog", "at", "!"} <= words
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            ids = found[torch.randint(len(found), (8,), generator=generator)]
            assert tokenizer(tokenizer.decode(ids.tolist()).strip(), add_special_tokens=False).input_ids == ids.tolist()

    def test_too_many_tokens_are_refused(self) -> None:
        text = TextSpace(tiny_pipeline())
        with pytest.raises(InputError, match="14 tokens"):
            text.encode_ids(torch.zeros(1, 15, dtype=torch.long))

    def test_a_search_begins_at_its_text(self) -> None:
        text = TextSpace(tiny_pipeline())

        def sources() -> list[torch.Generator]:
            return [torch.Generator().manual_seed(5) for _ in range(2)]

        ids = text.begin(["a cat at dog", None], sources(), 6)
        assert torch.equal(ids[0, :4], text.ids("a cat at dog"))
        assert torch.equal(ids[0, 4:], ids[1, 4:])
        assert torch.isin(ids[1], text.words).all()


def test_soft_tokens_begin_at_the_words_of_the_text() -> None:
    pipe = tiny_pipeline()
    (found,) = SoftTokens4(budgets=(0, 1), micro_batch=1, draws=1)(pipe, some_targets(1, text="a cat at dog"))
    torch.testing.assert_close(found.embeddings[0], pipe.encode_prompt(["a cat at dog"], "cpu", 1, False)[0][0])


def test_nearest_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(3)
    vectors, table = torch.randn(2, 3, 5, generator=generator), torch.randn(11, 5, generator=generator)
    for b, k in ((b, k) for b in range(2) for k in range(3)):
        cosines = [torch.nn.functional.cosine_similarity(vectors[b, k], row, dim=0).item() for row in table]
        assert int(nearest([vectors], [table])[b, k]) == cosines.index(max(cosines))


class TestChoose:
    def test_greedy_takes_the_first_best(self) -> None:
        scores = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 0.0]])
        sources = [torch.Generator().manual_seed(i) for i in range(2)]
        assert choose(scores, 0, sources).tolist() == [1, 0]

    def test_frequencies_are_those_of_the_softmax(self) -> None:
        scores = torch.tensor([[0.0, 1.0, 2.0]]) * 37  # the scale must not matter
        source = torch.Generator().manual_seed(0)
        n = 4000
        counts = torch.zeros(3)
        for _ in range(n):
            counts[choose(scores, 1.5, [source])] += 1
        standard = torch.tensor([0.0, 1.0, 2.0]).double() / 1.0  # their deviation is 1
        wanted = (standard / 1.5).softmax(0)
        for count, share in zip(counts.tolist(), wanted.tolist(), strict=True):
            assert abs(count / n - share) < 4 * math.sqrt(share * (1 - share) / n)


class TestWords:
    @pytest.mark.parametrize("score", ["loss", "magnitude"])
    def test_every_budget_is_at_least_as_good_as_the_last(self, score: str) -> None:
        pipe, (target,) = tiny_pipeline(), some_targets(1)
        attack = Words(budgets=(0, 2, 6), micro_batch=1, draws=2, length=3, proposals=5, score=score)  # type: ignore[arg-type]
        (found,) = attack(pipe, [target])
        loss = objective(pipe, target.image[None], rows=64)
        source = torch.Generator().manual_seed(target.seed)
        text = TextSpace(pipe)
        text.begin([None], [source], 3)
        judges = loss.draw([source], 2, stratified=True)
        if score == "loss":
            scores = [-loss.loss(row[None, None], judges).item() for row in found.embeddings]
        else:
            empty, last = pipe.encode_prompt([""], "cpu", 1, False)[0], torch.tensor(999)
            scores = []
            for row in found.embeddings:
                pairs = [
                    (pipe.unet(x[None], last, row[None]), pipe.unet(x[None], last, empty)) for x in judges.noise[0]
                ]
                scores.append(sum((a.sample - b.sample).square().sum().item() for a, b in pairs))
        assert scores[0] <= scores[1] <= scores[2]
        assert scores[2] > scores[0]

    def test_the_users_words(self) -> None:
        pipe = tiny_pipeline()
        attack = Words(budgets=(0, 12), micro_batch=1, draws=1, length=3, proposals=4, vocabulary=["cat", "dog", "qq"])
        (found,) = attack(pipe, some_targets(1, text="a a a"))
        assert found.texts is not None
        assert set(found.texts[1].split()) <= {"a", "cat", "dog"}

    def test_no_word_of_the_users_is_known(self) -> None:
        with pytest.raises(InputError, match="one token each"):
            Words(budgets=(0, 1), vocabulary=["qq"])(tiny_pipeline(), some_targets(1))

    @pytest.mark.parametrize("wrong", [{"length": 0}, {"proposals": 0}, {"temperature": -1}, {"score": "luck"}])
    def test_settings_are_checked(self, wrong: dict[str, object]) -> None:
        with pytest.raises(InputError, match="Expected"):
            Words(**wrong)  # type: ignore[arg-type]


def test_hard_tokens_keep_the_best_prompt_seen() -> None:
    pipe, (target,) = tiny_pipeline(), some_targets(1)
    (found,) = HardTokens(budgets=(0, 3, 10), micro_batch=1, draws=2, tokens=3, learning_rate=0.5)(pipe, [target])
    loss = objective(pipe, target.image[None], rows=64)
    source = torch.Generator().manual_seed(target.seed)
    TextSpace(pipe).begin([None], [source], 3)
    judges = loss.draw([source], 4, stratified=True)
    losses = [loss.loss(row[None, None], judges).item() for row in found.embeddings]
    assert losses[0] >= losses[1] >= losses[2]
    assert losses[2] < losses[0]
