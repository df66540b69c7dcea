"""DoRI: against a plain re-implementation for one image, and the contract of all attacks."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from diffkit.latents import encode_images
from memorization.attack import attacks
from memorization.attack.base import Target
from memorization.attack.dori import Dori, dori
from memorization.attack.starts import STARTS, StartingPoints, read_starts

ATTACKS = ["dori"]


def targets(n: int) -> list[Target]:
    generator = torch.Generator().manual_seed(9)
    return [
        Target(torch.rand(3, 64, 64, generator=generator), torch.randn(16, 32, generator=generator), seed=100 + index)
        for index in range(n)
    ]


def test_the_table_holds_every_attack() -> None:
    assert sorted(ATTACKS) == attacks.names()


@pytest.mark.parametrize("name", ATTACKS)
class TestContract:
    def test_curve(self, name: str) -> None:
        pipe = tiny_pipeline()
        attack = attacks.get(name)(budgets=(0, 1, 3), micro_batch=2)
        given = targets(3)  # the second batch is padded
        found = attack(pipe, given)
        assert len(found) == 3
        for target, triggers in zip(given, found, strict=True):
            assert triggers.budgets == (0, 1, 3)
            assert triggers.embeddings.shape == (3, 16, 32)
            assert torch.equal(triggers.embeddings[0], target.start)
            assert not torch.equal(triggers.embeddings[1], triggers.embeddings[2])
            assert triggers.sample_gradients == (0, 8, 24)

    def test_alone_or_in_company(self, name: str) -> None:
        pipe = tiny_pipeline()
        given = targets(3)
        attack = attacks.get(name)(budgets=(0, 2), micro_batch=3)
        together = attack(pipe, given)
        turned = attack(pipe, given[::-1])[::-1]
        alone = [attack(pipe, [target])[0] for target in given]
        for one, other, third in zip(together, turned, alone, strict=True):
            torch.testing.assert_close(one.embeddings, other.embeddings, atol=2e-3, rtol=0)
            torch.testing.assert_close(one.embeddings, third.embeddings, atol=2e-3, rtol=0)

    def test_again_is_the_same_to_the_last_bit(self, name: str) -> None:
        pipe = tiny_pipeline()
        attack = attacks.get(name)(budgets=(0, 2), micro_batch=2)
        first, second = attack(pipe, targets(2)), attack(pipe, targets(2))
        assert all(torch.equal(a.embeddings, b.embeddings) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize("budgets", [(), (0, 5, 5), (5, 1), (-1, 2)])
    def test_budgets_must_rise(self, name: str, budgets: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match="rising"):
            attacks.get(name)(budgets=budgets)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_one_image_by_the_textbook(prediction_type: str) -> None:
    """The loop written plainly with the scheduler's own noising and target, one draw at a time."""
    pipe = tiny_pipeline()
    (target,) = targets(1)
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    (found,) = Dori(budgets=(0, 3), micro_batch=1)(pipe, [target])

    embedding = torch.nn.Parameter(target.start.clone())
    optimizer = torch.optim.Adam([embedding], lr=0.1)
    generator = torch.Generator().manual_seed(target.seed)
    clean = encode_images(pipe, target.image[None])
    for _ in range(3):
        timesteps = torch.randint(1000, (8,), generator=generator)
        noise = torch.randn(8, 4, 16, 16, generator=generator)
        optimizer.zero_grad()
        for t, eps in zip(timesteps, noise, strict=True):
            noisy = pipe.scheduler.add_noise(clean, eps[None], t[None])
            wanted = {
                "epsilon": eps[None],
                "v_prediction": pipe.scheduler.get_velocity(clean, eps[None], t[None]),
                "sample": clean,
            }[prediction_type]
            predicted = pipe.unet(noisy, t, embedding[None]).sample
            (torch.nn.functional.mse_loss(predicted, wanted) / 8).backward()
        optimizer.step()
    torch.testing.assert_close(found.embeddings[1], embedding.detach(), atol=2e-3, rtol=0)


def test_it_finds_the_embedding_that_explains_the_image() -> None:
    """A linear denoiser that predicts noise only under one embedding: the attack must move towards it."""
    torch.manual_seed(0)
    hidden = torch.randn(1, 3, 4)

    def denoiser(noisy: torch.Tensor, _: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        wrong = (embeddings - hidden).square().mean((1, 2)).view(-1, 1, 1, 1)
        return noisy * 0 + wrong  # the loss is smallest where nothing is added

    start = torch.zeros(1, 3, 4)
    kept = dori(
        denoiser,
        torch.zeros(1, 4, 8, 8),
        start,
        [torch.Generator().manual_seed(0)],
        alphas_cumprod=torch.linspace(0.999, 0.01, 1000),
        budgets=(0, 10, 50),
    )
    distances = (kept[:, 0] - hidden).norm(dim=(1, 2)).tolist()
    assert distances[2] < distances[1] < distances[0]
    assert distances[2] < 0.35 * distances[0]


def test_a_target_nobody_knows_is_refused() -> None:
    pipe = tiny_pipeline()
    pipe.scheduler.register_to_config(prediction_type="flow_prediction")
    with pytest.raises(InputError, match="flow_prediction"):
        Dori(budgets=(0, 1), micro_batch=1)(pipe, targets(1))


def test_starts() -> None:
    pipe = tiny_pipeline()
    points = StartingPoints(pipe, ["a cat", "a dog"])
    own = torch.randn(16, 32)
    assert torch.equal(points.start("prompt", own=own, seed=1), own)
    others = {tuple(points.start("other", own=own, seed=seed).sum(0).tolist()) for seed in range(12)}
    assert len(others) == 2
    noise = points.start("gaussian", own=own, seed=1)
    real = pipe.encode_prompt(["a cat"], "cpu", 1, False)[0]
    assert noise.std().item() == pytest.approx(real.std().item(), rel=0.25)
    assert torch.equal(noise, points.start("gaussian", own=own, seed=1))
    assert not torch.equal(noise, points.start("gaussian", own=own, seed=2))


@pytest.mark.parametrize("names", [[], ["other", "other"], ["elsewhere"]])
def test_starts_are_checked(names: list[str]) -> None:
    with pytest.raises(InputError, match="prompt, other, gaussian"):
        read_starts(names)


def test_starts_have_one_order() -> None:
    assert read_starts(["gaussian", "prompt"]) == ("prompt", "gaussian")
    assert STARTS == ("prompt", "other", "gaussian")
