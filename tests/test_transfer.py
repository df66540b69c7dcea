"""Triggers elsewhere: other seeds, samplers, guidance and models, against the stock pipeline called by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.errors import InputError
from memorization.attack.transfer import SAMPLERS, Condition, TransferResult, sampler, transfer, varied_conditions
from memorization.copies.tiled import TiledCorrelation
from memorization.generation import Sampling


def test_every_condition_is_the_stock_pipeline_under_it() -> None:
    pipe, copies = tiny_pipeline(), TiledCorrelation()
    own = pipe.scheduler
    generator = torch.Generator().manual_seed(1)
    triggers = torch.randn(2, 16, 32, generator=generator)
    references = [torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2)]
    tried = [Condition("own", None, 3, 3.0, (5, 6)), Condition("euler", "euler", 4, 1.0, (7,))]
    found = transfer({"tiny": pipe}, triggers, references, copies, tried, micro_batch=3)
    assert pipe.scheduler is own
    assert [(one.model, one.condition.name) for one in found] == [("tiny", "own"), ("tiny", "euler")]
    for one, other in zip(found, (tiny_pipeline(), tiny_pipeline("euler")), strict=True):
        condition = one.condition
        for n, seed in enumerate(condition.seeds):
            for i in range(2):
                image = other(
                    prompt_embeds=triggers[i : i + 1],
                    negative_prompt_embeds=other.encode_prompt([""], "cpu", 1, False)[0],
                    generator=torch.Generator().manual_seed(seed),
                    num_inference_steps=condition.num_inference_steps,
                    guidance_scale=condition.guidance_scale,
                    output_type="pt",
                ).images
                wanted = copies.similarity(image, references[i]).max().item()
                assert one.similarity[i, n].item() == pytest.approx(wanted, abs=2e-3)


def test_models_differ() -> None:
    triggers = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    references = [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))]
    models = {"one": tiny_pipeline(seed=0), "other": tiny_pipeline(seed=1)}
    one, other = transfer(models, triggers, references, TiledCorrelation(), [Condition("a", None, 2, 3.0, (0,))])
    assert not torch.equal(one.similarity, other.similarity)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(name: str) -> None:
    pipe = tiny_pipeline()
    with sampler(pipe, name):
        assert type(pipe.scheduler).__name__ == SAMPLERS[name]
        assert pipe.scheduler.config.beta_schedule == "scaled_linear"
        image = pipe("a cat", num_inference_steps=3, guidance_scale=1.0, output_type="pt").images
    assert bool(torch.as_tensor(image).isfinite().all())


def test_rates_count_what_is_broken() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.9, 0.1, 0.2], [0.9, float("nan"), 0.9], [0.75, 0.75, 0.75]])
    one = TransferResult("m", Condition("c"), similarity)
    assert one.succeeded(0.75) == [True, False, None, True]
    rate = one.rate(0.75)
    assert (rate["k"], rate["n"], rate["broken"], rate["share"]) == (2, 3, 1, 2 / 3)
    assert rate["low"] < 2 / 3 < rate["high"]
    assert one.rate(0.75, [0, 3])["share"] == 1
    assert one.rate(0.75, [2])["share"] is None


def test_one_change_at_a_time() -> None:
    tried = varied_conditions(Sampling(20, 3.0), (1, 2), (8, 9))
    assert len({one.name for one in tried}) == len(tried) >= 8
    first = tried[0]
    assert (first.seeds, first.sampler, first.num_inference_steps, first.guidance_scale) == ((1, 2), None, 20, 3.0)
    for one in tried[1:]:
        assert one.seeds == (8, 9)
        changes = [one.sampler is not None, one.num_inference_steps != 20, one.guidance_scale != 3.0]
        assert sum(changes) == (0 if one.name == "fresh seeds" else 1)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match="Unknown sampler 'eulr'"):
        Condition("x", "eulr")
    with pytest.raises(InputError, match="steps of at least 1"):
        Condition("x", seeds=())
    with pytest.raises(InputError, match="references for each of 1"):
        transfer({}, torch.zeros(1, 16, 32), [], TiledCorrelation(), [])
