"""Pictures beside the prompt, for ControlNets and IP-Adapters; the reference is the stock pipeline's call with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image
from tiny import tiny_pipeline
from tiny_families import CONTROL, family_pipeline, sdxl, with_control
from tiny_ip_adapter import with_ip_adapter
from tiny_search import brightness

from diffkit.errors import InputError
from diffkit.seeds import generators
from ttsnap import TTSnapPipeline

PLAIN = {"num_inference_steps": 3, "guidance_scale": 3.0}
SEARCH = {"num_candidates": 2, "schedule": "1:0.5+1", "seed": 5, "micro_batch": 1}
RAMP = CONTROL["image"]
SIDE = RAMP.transpose(Image.Transpose.ROTATE_90)
RING = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
TWO = ["a dog", "cat at dog"]


pytestmark = pytest.mark.usefixtures("one_thread")


def searched(pipe: Any, prompt: Any, *positional: Any, **options: Any) -> Any:
    return TTSnapPipeline.from_pipe(pipe, reward=brightness)(prompt, *positional, **{**PLAIN, **SEARCH, **options})


def is_stock(pipe: Any, made: Any, seed: int, prompt: str = TWO[0], **options: Any) -> bool:
    reference = pipe(prompt, **{**PLAIN, **options}, generator=generators([seed])[0]).images[0]
    return np.array_equal(np.asarray(made), np.asarray(reference))


@pytest.fixture(scope="module", params=["sdxl", "sd1-controlnet"])
def adapted(request):
    pipe = with_ip_adapter(family_pipeline(request.param))
    return pipe, CONTROL if request.param.endswith("controlnet") else {}


def test_an_image_prompt_for_all_prompts(adapted):
    pipe, options = adapted
    runs: list[int] = []
    handle = pipe.image_encoder.register_forward_hook(lambda module, args, output: runs.append(1))
    out = searched(pipe, TWO, **options, ip_adapter_image=RING)
    handle.remove()
    assert len(runs) == 1
    assert out.ledger.encoded == 3 + 1
    assert None not in (out.ledger.flops.call, out.ledger.flops.encode)
    for image, seed, prompt in zip(out.images, out.seeds, TWO, strict=True):
        assert is_stock(pipe, image, seed, prompt, **options, ip_adapter_image=RING)
    assert not is_stock(pipe, out.images[0], out.seeds[0], **options, ip_adapter_image=RAMP)


def test_an_image_prompt_for_each_prompt(adapted):
    pipe, options = adapted
    out = searched(pipe, TWO, **options, ip_adapter_image=[RING, RAMP], micro_batch=4)
    strict = searched(pipe, TWO, **options, ip_adapter_image=[RING, RAMP])
    assert out.seeds == strict.seeds
    for image, seed, prompt, look in zip(strict.images, strict.seeds, TWO, [RING, RAMP], strict=True):
        assert is_stock(pipe, image, seed, prompt, **options, ip_adapter_image=look)


@pytest.mark.parametrize("scale", [3.0, 1.0])
def test_encoded_image_prompts(adapted, scale):
    """[negative; positive] with guidance; for all prompts, and for each."""
    pipe, options = adapted
    options = {**options, "guidance_scale": scale}
    halves = 2 if scale > 1 else 1
    embeds = torch.randn(2 * halves, 1, 16, generator=generators([3])[0])
    first, second = embeds[0::2], embeds[1::2]
    out = searched(pipe, TWO, **options, ip_adapter_image_embeds=[first])
    assert is_stock(pipe, out.images[1], out.seeds[1], TWO[1], **options, ip_adapter_image_embeds=[first])
    out = searched(pipe, TWO, **options, ip_adapter_image_embeds=[embeds])
    for image, seed, prompt, own in zip(out.images, out.seeds, TWO, [first, second], strict=True):
        assert is_stock(pipe, image, seed, prompt, **options, ip_adapter_image_embeds=[own])


def test_several_adapters():
    pipe = with_ip_adapter(tiny_pipeline("euler"), adapters=2)
    pipe.set_ip_adapter_scale([0.7, 0.4])
    out = searched(pipe, TWO[0], ip_adapter_image=[RING, RAMP])
    assert is_stock(pipe, out.images[0], out.seeds[0], ip_adapter_image=[RING, RAMP])
    out = searched(pipe, [*TWO, "a"], ip_adapter_image=[[RING, RAMP], [RAMP, RING], [RING, RING]])
    assert is_stock(pipe, out.images[1], out.seeds[1], TWO[1], ip_adapter_image=[RAMP, RING])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "This pipeline has an IP-Adapter; give ip_adapter_image= or ip_adapter_image_embeds="),
        ({"ip_adapter_image": RING, "ip_adapter_image_embeds": []}, "This pipeline has an IP-Adapter; give"),
        ({"ip_adapter_image": [RING] * 3}, "Got 3 image prompts for 1 IP-Adapters and 1 prompts"),
        ({"ip_adapter_image_embeds": torch.zeros(2, 1, 16)}, "must be a list with one tensor for each of 1"),
        ({"ip_adapter_image_embeds": [torch.zeros(1, 1, 16)]}, "the first with 2 rows .negative; positive. for all"),
    ],
)
def test_image_prompts_that_do_not_fit(adapted, options, sentence):
    pipe, control = adapted
    with pytest.raises(InputError, match=sentence):
        searched(pipe, TWO[0], **control, **options)


def test_an_image_prompt_without_adapter_or_encoder():
    pipe = tiny_pipeline()
    with pytest.raises(InputError, match="no IP-Adapter; load one by pipe.load_ip_adapter"):
        searched(pipe, TWO[0], ip_adapter_image=RING)
    pipe = with_ip_adapter(pipe)
    pipe.image_encoder = None
    with pytest.raises(InputError, match="no image_encoder; give ip_adapter_image_embeds= instead"):
        searched(pipe, TWO[0], ip_adapter_image=RING)


@pytest.fixture(scope="module")
def led():
    return family_pipeline("sd1-controlnet")


def batch(*pictures: Any) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 for picture in pictures])


@pytest.mark.parametrize(
    "images", [[RAMP, RING], batch(RAMP, RING), batch(RAMP, RING).permute(0, 2, 3, 1).numpy()], ids=["pil", "pt", "np"]
)
def test_a_control_image_for_each_prompt(led, images):
    out = searched(led, TWO, image=images)
    for index, (image, seed, prompt) in enumerate(zip(out.images, out.seeds, TWO, strict=True)):
        assert is_stock(led, image, seed, prompt, image=images[index : index + 1])


def test_prompts_with_images_of_their_own_cannot_draw_from_one_generator(led):
    options = {"image": [RAMP, RING], "num_candidates": 1, "schedule": "", "seed": None, "micro_batch": None}
    with pytest.raises(InputError, match="denoised or decoded apart; give a list with one generator for each"):
        searched(led, TWO, **options, generator=generators([1])[0])
    out = searched(led, TWO, **{**options, "micro_batch": 1}, generator=generators([1, 2]))
    assert is_stock(led, out.images[1], 2, TWO[1], image=RING)


def test_a_control_image_by_its_position(led):
    out = searched(led, TWO[0], RING)
    assert is_stock(led, out.images[0], out.seeds[0], image=RING)
    with pytest.raises(InputError, match="image is given twice, by its position and by its name"):
        searched(led, TWO[0], RING, image=RING)
    with pytest.raises(InputError, match="takes at most"):
        searched(led, TWO[0], RING, *[None] * 60)


@pytest.fixture(scope="module")
def doubly_led():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = with_control(sdxl(), StableDiffusionXLControlNetPipeline)
        second = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 16))
        with torch.no_grad():
            for weight in second.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
    pipe.register_modules(controlnet=MultiControlNetModel([pipe.controlnet, second]))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_several_control_nets(doubly_led):
    strengths = {"controlnet_conditioning_scale": [0.8, 0.5], "control_guidance_start": [0.0, 0.0]}
    out = searched(doubly_led, TWO, image=[RAMP, RING], **strengths)
    for image, seed, prompt in zip(out.images, out.seeds, TWO, strict=True):
        assert is_stock(doubly_led, image, seed, prompt, image=[RAMP, RING], **strengths)
    own = [[RAMP, RING], [RING, SIDE]]
    out = searched(doubly_led, TWO, image=own)
    for image, seed, prompt, images in zip(out.images, out.seeds, TWO, own, strict=True):
        assert is_stock(doubly_led, image, seed, prompt, image=images)
    out = searched(doubly_led, TWO, image=[RAMP, batch(RING, SIDE)])
    assert is_stock(doubly_led, out.images[1], out.seeds[1], TWO[1], image=[RAMP, batch(SIDE)])
    lone = searched(family_pipeline("sdxl-controlnet"), TWO[0], image=RAMP, num_candidates=1).ledger.flops.call
    assert out.ledger.flops.call > lone


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (RAMP, "There are 2 ControlNets; give image= as a list"),
        ([RAMP, RAMP, RAMP], "Got 3 images in image= for 2 ControlNets"),
        ([[RAMP], [RING]], "Expected image= as 2 lists .or one. of 2 images"),
        ([RAMP, RING.resize((32, 32))], "different sizes .32x32, 64x64.; say height and width"),
    ],
)
def test_images_that_do_not_fit_the_control_nets(doubly_led, image, sentence):
    with pytest.raises(InputError, match=sentence):
        searched(doubly_led, TWO, image=image)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (None, "A ControlNet follows an image; give it as image="),
        ([RAMP] * 3, "Got 3 images in image= for 2 prompts; give one, or one each"),
        (torch.zeros(3, 64, 64), "must have 4 dimensions"),
        ([RAMP, RING.resize((32, 32))], "different sizes"),
    ],
)
def test_images_that_do_not_fit_the_prompts(led, image, sentence):
    with pytest.raises(InputError, match=sentence):
        searched(led, TWO, image=image)
