"""Guards at generation time against closed forms and the stock pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import tiny_pipeline
from torch import Tensor

from diffkit.conditioning import encode_prompts
from diffkit.errors import InputError
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.seeds import generators
from memorization.detection.noise_magnitude import record_noise_differences
from memorization.mitigation.attention_guard import AttentionGuardSettings, rescale
from memorization.mitigation.prompt_guard import PromptGuardSettings, soften


def guard(kind: str, target: float | None = None, **settings: Any) -> Mitigation:
    return Mitigation(method=kind, kind=kind, model="tiny", tensors={}, settings=settings, figures={"target": target})


def draw(pipe: Any, captions: list[str], seeds: list[int]) -> Tensor:
    latents: Tensor = pipe(
        captions, num_inference_steps=4, guidance_scale=3.0, generator=generators(seeds), output_type="latent"
    ).images
    return latents


def squares(rows: Tensor) -> Tensor:
    return rows.square().flatten(1).sum(1)


def test_softening_stops_every_row_at_its_own_target_and_never_moves_the_first_token() -> None:
    start = torch.stack([torch.full((3, 2), 0.2), torch.full((3, 2), 2.0)])
    done = soften(squares, start, target=0.3, learning_rate=0.1, iterations=200)
    assert torch.equal(done[0], start[0])  # 0.24 is below the target already
    assert torch.equal(done[:, 0], start[:, 0])
    # row 1 cannot get below its frozen first token: 2 * 4 = 8
    assert float(squares(done)[1]) == pytest.approx(8.0, abs=0.3)
    low = soften(squares, start, target=9.0, learning_rate=0.1, iterations=200)
    assert 8.0 < float(squares(low)[1]) <= 9.0


def test_adamw_moves_by_the_learning_rate_and_at_most_so_many_iterations() -> None:
    start = torch.full((1, 2, 1), 5.0)
    done = soften(squares, start, target=0.0, learning_rate=0.05, iterations=3)
    torch.testing.assert_close(done[0, 1], torch.tensor([5.0 - 3 * 0.05]), atol=1e-3, rtol=0)


def test_a_softened_image_does_not_depend_on_its_neighbours() -> None:
    """Quirk of the published code: one norm over the whole batch, so that more images mean a larger loss."""
    pipe = tiny_pipeline()
    made = guard("prompt-guard", target=1e-6, learning_rate=0.05, iterations=3)
    with apply_mitigation(pipe, made):
        both = draw(pipe, ["a dog", "the cat"], [1, 2])
        alone = draw(pipe, ["the cat"], [2])
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-4)


def test_the_prompt_guard_lowers_the_text_magnitude_and_leaves_what_is_low_alone() -> None:
    pipe = tiny_pipeline()
    with record_noise_differences(pipe) as plain:
        before = draw(pipe, ["a dog"], [1])
    with apply_mitigation(pipe, guard("prompt-guard", target=1e-6, learning_rate=0.1, iterations=10)):
        with record_noise_differences(pipe) as guarded:
            assert not torch.allclose(draw(pipe, ["a dog"], [1]), before)
        assert len(guarded) == len(plain)  # who listens does not hear the guard's own calls
        assert float(guarded[0].norm()) < float(plain[0].norm())
    with apply_mitigation(pipe, guard("prompt-guard", target=1e6, learning_rate=0.1, iterations=10)):
        assert torch.equal(draw(pipe, ["a dog"], [1]), before)
    assert torch.equal(draw(pipe, ["a dog"], [1]), before)


def test_rescaling_touches_the_first_logit_and_the_padding_of_conditional_rows_only() -> None:
    logits = torch.arange(1.0, 17).view(2, 1, 2, 4)
    hidden = torch.tensor([[False, False, False, True]] * 2)
    found = rescale(logits, torch.tensor([False, True]), hidden, 1.5)
    assert torch.equal(found[0], logits[0])
    assert found[1, 0].tolist() == [[13.5, 10.0, 11.0, -torch.inf], [19.5, 14.0, 15.0, -torch.inf]]


def test_attention_without_a_change_is_the_stock_attention() -> None:
    pipe = tiny_pipeline()
    before = draw(pipe, ["a dog"], [1])
    with apply_mitigation(pipe, guard("attention-guard", factor=1.0, mask_padding=False)):
        torch.testing.assert_close(draw(pipe, ["a dog"], [1]), before, rtol=1e-3, atol=1e-4)
    with apply_mitigation(pipe, guard("attention-guard", factor=1.25, mask_padding=False)):
        assert not torch.allclose(draw(pipe, ["a dog"], [1]), before, rtol=1e-3, atol=1e-4)
    assert torch.equal(draw(pipe, ["a dog"], [1]), before)
    assert "encode_prompt" not in vars(pipe)


def test_masked_padding_has_no_influence_and_unknown_embeddings_keep_theirs() -> None:
    pipe = tiny_pipeline()
    embeds = encode_prompts(pipe, ["a dog"], guidance=False).prompt_embeds
    negative = encode_prompts(pipe, [""], guidance=False).prompt_embeds
    length = len(pipe.tokenizer("a dog").input_ids)

    def run(rows: Tensor) -> Tensor:
        latents: Tensor = pipe(
            prompt_embeds=rows,
            negative_prompt_embeds=negative,
            num_inference_steps=2,
            guidance_scale=3.0,
            generator=generators([1]),
            output_type="latent",
        ).images
        return latents

    with apply_mitigation(pipe, guard("attention-guard", factor=1.0, mask_padding=True)) as applied:
        assert applied.mitigation.kind == "attention-guard"
        unknown = run(embeds)
        encode_prompts(pipe, ["a dog"], guidance=False)  # now its length is known
        known = run(embeds)
    torch.testing.assert_close(unknown, run(embeds), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(known, unknown, rtol=1e-3, atol=1e-4)
    assert length < embeds.shape[1]


def test_guards_stack_and_come_off_in_reverse() -> None:
    pipe = tiny_pipeline()
    before = draw(pipe, ["a dog"], [1])
    outer = apply_mitigation(pipe, guard("attention-guard", factor=1.25, mask_padding=True))
    once = draw(pipe, ["a dog"], [1])
    inner = apply_mitigation(pipe, guard("attention-guard", factor=1.5, mask_padding=True))
    inner.undo()
    torch.testing.assert_close(draw(pipe, ["a dog"], [1]), once)
    outer.undo()
    assert torch.equal(draw(pipe, ["a dog"], [1]), before)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(InputError, match="factor"):
        AttentionGuardSettings(factor=0.5)
    with pytest.raises(InputError, match="positive"):
        PromptGuardSettings(target=0.0)
    with pytest.raises(InputError, match="at least one"):
        PromptGuardSettings(iterations=0)
