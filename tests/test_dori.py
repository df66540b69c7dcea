"""DoRI: against a plain re-implementation for one image; where it starts."""

from __future__ import annotations

import pytest
import torch
from attack_table import targets
from tiny import SCHEDULERS, tiny_pipeline

from diffkit.errors import InputError
from diffkit.latents import encode_images
from diffkit.prompt_embeds import Embeds
from memorization.attack.dori import Dori, FreeEmbedding
from memorization.attack.gradient import descend
from memorization.attack.initialization import STARTS, StartingPoints, read_starts
from memorization.attack.objective import Objective


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

    def denoiser(noisy: torch.Tensor, _: torch.Tensor, embeddings: Embeds) -> torch.Tensor:
        wrong = (embeddings.prompt_embeds - hidden).square().mean((1, 2)).view(-1, 1, 1, 1)
        return noisy * 0 + wrong  # the loss is smallest where nothing is added

    start = torch.zeros(1, 3, 4)
    kept = descend(
        FreeEmbedding(Embeds(start)),
        Objective(denoiser, torch.zeros(1, 4, 8, 8), SCHEDULERS["ddim"]()),
        [torch.Generator().manual_seed(0)],
        budgets=(0, 10, 50),
        learning_rate=0.1,
        draws=8,
    )
    distances = (torch.cat([rows.prompt_embeds for rows in kept]) - hidden).norm(dim=(1, 2)).tolist()
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
    begin = {
        (name, seed): points.start(name, own=own, seed=seed).prompt_embeds[0] for name in STARTS for seed in range(12)
    }
    assert torch.equal(begin["prompt", 1], own)
    assert len({tuple(begin["other", seed].sum(0).tolist()) for seed in range(12)}) == 2
    noise = begin["gaussian", 1]
    real = pipe.encode_prompt(["a cat"], "cpu", 1, False)[0]
    assert noise.std().item() == pytest.approx(real.std().item(), rel=0.25)
    assert torch.equal(noise, points.start("gaussian", own=own, seed=1).prompt_embeds[0])
    assert not torch.equal(noise, begin["gaussian", 2])


def test_texts_to_begin_at_are_those_of_the_starts() -> None:
    pipe = tiny_pipeline()
    points = StartingPoints(pipe, ["a cat", "a dog"])
    own = torch.randn(16, 32)
    assert points.text("prompt", own="my caption", seed=3) == "my caption"
    assert points.text("gaussian", own="my caption", seed=3) is None
    for seed in range(6):
        text = points.text("other", own="my caption", seed=seed)
        assert text is not None
        embedding = pipe.encode_prompt([text], "cpu", 1, False)[0][0]
        assert torch.equal(points.start("other", own=own, seed=seed).prompt_embeds[0], embedding)


@pytest.mark.parametrize("names", [[], ["other", "other"], ["elsewhere"]])
def test_starts_are_checked(names: list[str]) -> None:
    with pytest.raises(InputError, match="prompt, other, gaussian"):
        read_starts(names)


def test_starts_have_one_order() -> None:
    assert read_starts(["gaussian", "prompt"]) == ("prompt", "gaussian")
    assert STARTS == ("prompt", "other", "gaussian")
