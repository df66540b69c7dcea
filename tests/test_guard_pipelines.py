"""Guards in every loop that a pipeline of a known family runs: other families, pictures, searches, adapters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from PIL import Image
from tiny import tiny_pipeline
from tiny_families import FAMILY_ROWS, family_pipeline
from tiny_ip_adapter import with_ip_adapter
from torch import Tensor

from diffkit.conditioning import encode_prompts, predict_noise
from diffkit.errors import InputError
from diffkit.mitigation import Mitigation, apply_mitigation
from diffkit.seeds import generators
from diffkit.segments import Candidate, Denoising, run_segment
from memorization.mitigation import attention_guard
from ttsnap import TTSnapPipeline

GUIDED = {"guidance_scale": 3.0, "output_type": "latent"}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def softening(target: float = 1e-6) -> Mitigation:
    settings = {"learning_rate": 0.05, "iterations": 3}
    return Mitigation("prompt-guard", "prompt-guard", "tiny", {}, settings=settings, figures={"target": target})


def rescaling(factor: float = 1.25, *, mask_padding: bool = True) -> Mitigation:
    settings = {"factor": factor, "mask_padding": mask_padding}
    return Mitigation("attention-guard", "attention-guard", "tiny", {}, settings=settings)


def draw(pipe: Any, prompt: str | list[str] = "a dog", seeds: tuple[int, ...] = (1,), **options: Any) -> Tensor:
    options = {**GUIDED, "num_inference_steps": 2, **options}
    latents: Tensor = pipe(prompt, generator=generators(seeds), **options).images
    return latents


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[bool], list[int]]]:
    """(conditional, number of visible tokens) of the rows, each time that the attention guard reads them."""
    readings, read = [], attention_guard._CaptionLengths.read

    def spy(self: Any, embeds: Tensor) -> tuple[Tensor, Tensor]:
        rows, hidden = read(self, embeds)
        readings.append((rows.tolist(), (~hidden).sum(1).tolist()))
        return rows, hidden

    monkeypatch.setattr(attention_guard._CaptionLengths, "read", spy)
    return readings


@pytest.mark.parametrize(
    "name", ["pixart-sigma", "pixart-alpha", "aura-flow", "sana", "sd1-controlnet", "sdxl-controlnet"]
)
def test_the_prompt_guard_acts_on_every_family_with_one_batch_of_both(name: str) -> None:
    pipe, options = family_pipeline(name), FAMILY_ROWS[name].options
    plain = draw(pipe, **options)
    with apply_mitigation(pipe, softening()):
        assert not torch.equal(draw(pipe, **options), plain)
    with apply_mitigation(pipe, softening(target=1e6)):
        assert torch.equal(draw(pipe, **options), plain)
    assert torch.equal(draw(pipe, **options), plain)


def test_the_prompt_guard_refuses_a_family_without_a_gradient_and_a_loop_that_it_cannot_read() -> None:
    with pytest.raises(InputError, match="HiDream-I1: its experts"):
        apply_mitigation(family_pipeline("hidream"), softening())

    class OwnLoop(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, noise: Tensor, embeds: Tensor) -> Tensor:
            with torch.no_grad():
                output: Tensor = self.unet(noise, 1, encoder_hidden_states=embeds).sample
            return output

    pipe = OwnLoop(**tiny_pipeline().components, requires_safety_checker=False)
    arguments = torch.zeros(2, 4, 16, 16), torch.zeros(2, 16, 32)
    with apply_mitigation(pipe, softening()), pytest.raises(InputError, match="loop of OwnLoop cannot be read"):
        pipe(*arguments)
    with apply_mitigation(pipe, rescaling()):
        pipe(*arguments)


def test_the_prompt_guard_softens_image_to_image_whose_loop_begins_later() -> None:
    pipe = StableDiffusionImg2ImgPipeline(**tiny_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    options = {"image": Image.linear_gradient("L").resize((64, 64)).convert("RGB"), "strength": 0.5}
    plain = draw(pipe, num_inference_steps=4, **options)
    with apply_mitigation(pipe, softening()):
        assert not torch.equal(draw(pipe, num_inference_steps=4, **options), plain)
    assert torch.equal(draw(pipe, num_inference_steps=4, **options), plain)


def test_the_prompt_guard_acts_in_the_first_search_of_a_fresh_pipeline_as_in_the_stock_call() -> None:
    pipe = tiny_pipeline()
    search = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: [float(image.mean()) for image in images])
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    with apply_mitigation(pipe, softening()):
        out = search("a dog", num_candidates=4, schedule="2:0.5", seed=3, micro_batch=1, **options)
        stock = draw(pipe, seeds=tuple(out.seeds), num_inference_steps=4)
    torch.testing.assert_close(torch.stack(list(out.images)), stock, **CLOSE)


def test_the_attention_guard_acts_in_a_search_as_in_the_stock_call() -> None:
    pipe = tiny_pipeline()
    search = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: [float(image.mean()) for image in images])
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    with apply_mitigation(pipe, rescaling(mask_padding=False)):
        out = search("a dog", num_candidates=4, schedule="2:0.5", seed=3, micro_batch=1, **options)
        stock = draw(pipe, seeds=tuple(out.seeds), num_inference_steps=4)
    torch.testing.assert_close(torch.stack(list(out.images)), stock, **CLOSE)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "pixart-sigma", "sana", "aura-flow"])
def test_a_candidate_keeps_its_softened_caption_where_it_is_resumed_in_another_batch(name: str) -> None:
    pipe, options = family_pipeline(name), FAMILY_ROWS[name].options
    size = {side: options[side] for side in ("height", "width") if side in options}
    conditioning = encode_prompts(pipe, ["a dog"], options=options)
    extra = {key: value for key, value in options.items() if key not in size}
    denoising = Denoising(4, 3.0, micro_batch=2, extra=extra, **size)
    with apply_mitigation(pipe, softening()):
        whole = draw(pipe, seeds=(2,), num_inference_steps=4, **options)
        first = [Candidate(index, 0, generator) for index, generator in enumerate(generators([1, 2]))]
        alive = run_segment(pipe, first, conditioning, denoising, 0, 1)
        alive = run_segment(pipe, alive[1:], conditioning, denoising, 1, 3)
        reseeded = replace(alive[0], generator=generators([5])[0])  # as a search does that resamples
        (last,) = run_segment(pipe, [reseeded], conditioning, denoising, 3, 4)
        torch.testing.assert_close(last.latents, whole, **CLOSE)
    unguarded = run_segment(pipe, first, conditioning, denoising, 0, 2)
    with apply_mitigation(pipe, softening()), pytest.raises(InputError, match="does not know the candidates"):
        run_segment(pipe, unguarded, conditioning, denoising, 2, 4)


@pytest.mark.parametrize("kind", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_a_search_from_a_picture_keeps_the_softened_captions(kind: Any) -> None:
    pipe = kind(**tiny_pipeline().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture = Image.linear_gradient("L").resize((64, 64))
    options = {"image": picture.convert("RGB"), "strength": 0.8, "num_inference_steps": 5}
    if kind is StableDiffusionInpaintPipeline:
        options["mask_image"] = picture
    search = TTSnapPipeline.from_pipe(pipe, reward=lambda images, prompts: [float(image.mean()) for image in images])
    with apply_mitigation(pipe, softening()):
        out = search("a dog", num_candidates=2, schedule="2:0.5", seed=3, micro_batch=1, **GUIDED, **options)
        stock = draw(pipe, seeds=tuple(out.seeds), **options)
    torch.testing.assert_close(torch.stack(list(out.images)), stock, **CLOSE)


def test_rows_without_guidance_are_not_taken_for_the_two_halves() -> None:
    """Of a pipeline or of a detector's query, after a guided generation, from the same noise in both rows."""
    pipe = tiny_pipeline()
    noise = torch.randn(1, 4, 16, 16, generator=generators([1])[0]).repeat(2, 1, 1, 1)
    embeds = encode_prompts(pipe, ["a dog", "the cat"], guidance=False).positive

    def unguided() -> tuple[Tensor, Tensor]:
        images = draw(pipe, ["a dog", "the cat"], (1, 2), guidance_scale=1.0, latents=noise)
        with torch.no_grad():
            draw(pipe)
            return images, predict_noise(pipe, noise, pipe.scheduler.timesteps[0], embeds)

    plain = unguided()
    with apply_mitigation(pipe, softening()):
        guarded = unguided()
    assert all(torch.equal(one, other) for one, other in zip(plain, guarded, strict=True))


def test_the_prompt_guard_gives_each_half_its_own_rows_of_an_ip_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = with_ip_adapter(tiny_pipeline())
    rows, forward = [], pipe.unet.forward

    def counted(*args: Any, **named: Any) -> Any:
        images = named["added_cond_kwargs"]["image_embeds"]
        rows.append((len(named["encoder_hidden_states"]), [len(image) for image in images]))
        return forward(*args, **named)

    monkeypatch.setattr(pipe.unet, "forward", counted)
    with apply_mitigation(pipe, softening()):
        draw(pipe, num_inference_steps=1, ip_adapter_image=Image.new("RGB", (32, 32), (200, 10, 10)))
    assert len(rows) > 2
    assert all(images == [text] for text, images in rows)


def test_the_attention_guard_gives_each_image_of_a_prompt_the_length_of_that_prompt() -> None:
    pipe = tiny_pipeline()
    with apply_mitigation(pipe, rescaling()):
        together = draw(pipe, ["a", "the dog at the cat"], (1, 2, 3, 4), num_images_per_prompt=2)
    with apply_mitigation(pipe, rescaling()):
        listed = draw(pipe, ["a", "a", "the dog at the cat", "the dog at the cat"], (1, 2, 3, 4))
    torch.testing.assert_close(together, listed, **CLOSE)


def test_the_attention_guard_leaves_the_negative_prompt_alone(seen: list[tuple[list[bool], list[int]]]) -> None:
    pipe = tiny_pipeline()
    length = len(pipe.tokenizer("a dog").input_ids)
    with apply_mitigation(pipe, rescaling()):
        draw(pipe, negative_prompt="cat")
        draw(pipe, ["a dog", "a dog"], (1, 2), guidance_scale=1.0)
    assert {tuple(rows) for rows, _ in seen} == {(False, True), (True, True)}
    assert seen[0][1][1] == length


def test_the_attention_guard_counts_every_vector_of_a_textual_inversion(
    seen: list[tuple[list[bool], list[int]]],
) -> None:
    pipe = tiny_pipeline()
    pipe.load_textual_inversion(torch.randn(4, 32), token="<x>")
    short = len(pipe.tokenizer("a <x> dog").input_ids)
    with apply_mitigation(pipe, rescaling()):
        draw(pipe, "a <x> dog")
    assert seen[0][1][1] == short + 3


def test_another_attention_processor_does_not_take_the_attention_guard_off() -> None:
    pipe = tiny_pipeline()
    plain = draw(pipe)
    applied = apply_mitigation(pipe, rescaling())
    guarded = draw(pipe)
    pipe.enable_attention_slicing(1)
    sliced = dict(pipe.unet.attn_processors)
    torch.testing.assert_close(draw(pipe), guarded, **CLOSE)
    pipe.disable_attention_slicing()
    assert torch.equal(draw(pipe), guarded)
    pipe.enable_attention_slicing(1)
    applied.undo()
    assert [type(processor) for processor in pipe.unet.attn_processors.values()] == [
        type(processor) for processor in sliced.values()
    ]
    pipe.disable_attention_slicing()
    assert torch.equal(draw(pipe), plain)
    assert not torch.allclose(plain, guarded, **CLOSE)


def test_the_attention_guard_refuses_an_ip_adapter_before_and_after() -> None:
    with pytest.raises(InputError, match="weights of its own"):
        apply_mitigation(with_ip_adapter(tiny_pipeline()), rescaling())
    pipe = tiny_pipeline()
    picture = Image.new("RGB", (32, 32), (200, 10, 10))
    with apply_mitigation(pipe, rescaling()):
        with_ip_adapter(pipe)
        processors = dict(pipe.unet.attn_processors)
        with pytest.raises(InputError, match="weights of its own"):
            draw(pipe, ip_adapter_image=picture)
    assert dict(pipe.unet.attn_processors) == processors
    assert draw(pipe, ip_adapter_image=picture).isfinite().all()
