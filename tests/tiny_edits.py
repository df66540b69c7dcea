"""Tiny pipelines that begin from a picture: image-to-image, inpainting, editing; parts as in tests/tiny_families.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import diffusers
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from PIL import Image, ImageDraw
from tiny import tiny_pipeline
from tiny_families import flux, kl, qwen_encoder, qwen_image, qwen_tokenizer, sdxl, stable_diffusion_3, with_control
from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

RAMP = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
RING = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
MASK = Image.new("L", (32, 32))
ImageDraw.Draw(MASK).rectangle((8, 8, 23, 31), fill=255)
SMALL = {"height": 32, "width": 32}
VISION = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}


def changed(model: Any, **settings: int) -> dict[str, Any]:
    """A model's configuration with other settings."""
    own = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    return {**own, **settings}


def nine_channels(pipe: Any) -> Any:
    """The U-Net of a model for inpainting, which sees the mask and the masked picture."""
    wide = UNet2DConditionModel.from_config(changed(pipe.unet, in_channels=9))
    pipe.register_modules(unet=wide)
    return pipe


def turned(pipe: Any, kind: str, **more: Any) -> Any:
    """The same parts as a pipeline of another task."""
    cls = getattr(diffusers, kind)
    parts = {name: part for name, part in pipe.components.items() if name in signature(cls).parameters}
    extra = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    return cls(**parts, **extra, **more)


def sd3() -> Any:
    """With the 16 channels that its pipelines ask for."""
    pipe = stable_diffusion_3()
    wide = SD3Transformer2DModel.from_config(changed(pipe.transformer, in_channels=16, out_channels=16))
    pipe.register_modules(vae=kl(16, shift=0.1), transformer=wide)
    return pipe


def flux_fill() -> Any:
    """Beside 16 latents in each packet the denoiser sees those of the masked picture, and the mask of 8 x 8 pixels."""
    pipe = flux()
    wide = FluxTransformer2DModel.from_config(changed(pipe.transformer, in_channels=96, out_channels=16))
    pipe.register_modules(transformer=wide)
    return turned(pipe, "FluxFillPipeline")


def flux_control(kind: str) -> Any:
    """Beside its latents the denoiser sees those of the picture that leads."""
    pipe = flux()
    wide = FluxTransformer2DModel.from_config(changed(pipe.transformer, in_channels=32, out_channels=16))
    pipe.register_modules(transformer=wide)
    return turned(pipe, kind)


def flux_with_net(kind: str) -> Any:
    """Led by a ControlNet whose additions are not nothing."""
    pipe = flux()
    shape = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    net = FluxControlNetModel.from_transformer(pipe.transformer, **shape)
    with torch.no_grad():
        for layer in [*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder]:
            for weight in layer.parameters():
                weight.normal_(std=0.2)
    return turned(pipe, kind, controlnet=net)


def qwen_image_edit(kind: str) -> Any:
    """Its text encoder sees the picture."""
    words = qwen_tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(VISION)})
    places = dict(zip(VISION.values(), words.convert_tokens_to_ids(list(VISION)), strict=True))
    pipe = qwen_image()
    eyes = Qwen2VLProcessor(Qwen2VLImageProcessor(), words, Qwen2VLVideoProcessor(), words.chat_template)
    parts = {**pipe.components, "tokenizer": words, "text_encoder": qwen_encoder(words, **places), "processor": eyes}
    return getattr(diffusers, kind)(**parts)


def sd(vae: str = "kl") -> Any:
    return tiny_pipeline("ddim", vae=vae)


@dataclass(frozen=True)
class Edit:
    """One family that begins from a picture.

    Attributes:
        build: makes the pipeline.
        options: of every call, beside the number of steps.
        calls: of the denoiser, of 4 steps.
        schedulers: others that its denoising is cut with.
    """

    build: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    calls: int = 4
    schedulers: tuple[str, ...] = ()


IMAGE = {"image": RAMP}
PAINT = {"image": RAMP, "mask_image": MASK}
LED = {"control_image": RING}
SHORT = {"max_sequence_length": 8}
TRUE = {"true_cfg_scale": 3.0}
EDITS: dict[str, Edit] = {
    "sd1-img2img": Edit(lambda: turned(sd(), "StableDiffusionImg2ImgPipeline"), {**IMAGE, "strength": 0.8}, 3),
    "sd1-inpaint": Edit(lambda: turned(sd(), "StableDiffusionInpaintPipeline"), {**PAINT, **SMALL, "strength": 0.8}, 3),
    "sd1-inpaint-9": Edit(lambda: turned(nine_channels(sd()), "StableDiffusionInpaintPipeline"), {**PAINT, **SMALL}),
    "sdxl-img2img": Edit(lambda: turned(sdxl(), "StableDiffusionXLImg2ImgPipeline"), {**IMAGE, "strength": 0.8}, 3),
    "sdxl-inpaint": Edit(lambda: turned(sdxl(), "StableDiffusionXLInpaintPipeline"), {**PAINT, **SMALL}, 3),
    "sd1-controlnet-img2img": Edit(
        lambda: with_control(sd(), diffusers.StableDiffusionControlNetImg2ImgPipeline), {**IMAGE, **LED}, 3
    ),
    "sd1-controlnet-inpaint": Edit(
        lambda: with_control(sd(), diffusers.StableDiffusionControlNetInpaintPipeline), {**PAINT, **LED}
    ),
    "sdxl-controlnet-img2img": Edit(
        lambda: with_control(sdxl(), diffusers.StableDiffusionXLControlNetImg2ImgPipeline), {**IMAGE, **LED}, 3
    ),
    "sdxl-controlnet-inpaint": Edit(
        lambda: with_control(sdxl(), diffusers.StableDiffusionXLControlNetInpaintPipeline), {**PAINT, **LED}, 3
    ),
    "sd3-img2img": Edit(lambda: turned(sd3(), "StableDiffusion3Img2ImgPipeline"), {**IMAGE, **SMALL, **SHORT}, 3),
    "sd3-inpaint": Edit(lambda: turned(sd3(), "StableDiffusion3InpaintPipeline"), {**PAINT, **SMALL, **SHORT}, 3),
    "flux-img2img": Edit(lambda: turned(flux(), "FluxImg2ImgPipeline"), {**IMAGE, **SMALL, **SHORT}, 3),
    "flux-inpaint": Edit(lambda: turned(flux(), "FluxInpaintPipeline"), {**PAINT, **SMALL, **SHORT, **TRUE}, 3),
    "flux-fill": Edit(flux_fill, {**PAINT, **SMALL, **SHORT}),
    "flux-kontext": Edit(
        lambda: turned(flux(), "FluxKontextPipeline"),
        {**IMAGE, **SMALL, **SHORT, "max_area": 1024, "_auto_resize": False},
    ),
    "flux-control": Edit(lambda: flux_control("FluxControlPipeline"), {**LED, **SMALL, **SHORT}),
    "flux-control-img2img": Edit(
        lambda: flux_control("FluxControlImg2ImgPipeline"), {**IMAGE, **LED, **SMALL, **SHORT}, 3
    ),
    "flux-controlnet": Edit(lambda: flux_with_net("FluxControlNetPipeline"), {**LED, **SMALL, **SHORT, **TRUE}),
    "flux-controlnet-img2img": Edit(
        lambda: flux_with_net("FluxControlNetImg2ImgPipeline"), {**IMAGE, **LED, **SMALL, **SHORT}, 3
    ),
    "flux-controlnet-inpaint": Edit(
        lambda: flux_with_net("FluxControlNetInpaintPipeline"), {**PAINT, **LED, **SMALL, **SHORT}, 3
    ),
    "qwen-image-edit": Edit(lambda: qwen_image_edit("QwenImageEditPipeline"), {**IMAGE, **TRUE}),
    "qwen-image-edit-plus": Edit(lambda: qwen_image_edit("QwenImageEditPlusPipeline"), {"image": [RAMP, RING]}),
    "qwen-image-img2img": Edit(lambda: turned(qwen_image(), "QwenImageImg2ImgPipeline"), {**IMAGE, **SMALL, **TRUE}, 3),
    "qwen-image-inpaint": Edit(lambda: turned(qwen_image(), "QwenImageInpaintPipeline"), {**PAINT, **SMALL}, 3),
}


def edit_pipeline(name: str) -> Any:
    """The tiny pipeline of a row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = EDITS[name].build()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
