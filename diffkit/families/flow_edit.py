"""Image-to-image, inpainting and editing with SD3, FLUX.1 and Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from PIL import Image

from diffkit.errors import InputError
from diffkit.families.base import Family, Pipeline, Size, no_refusal, unscaled
from diffkit.families.flow import linear_sigmas, patches
from diffkit.families.flux import FLUX
from diffkit.families.pictures import CROP, MADE, cell_noise_shape, from_picture, map_noise_shape
from diffkit.families.qwen_image import QWEN_IMAGE
from diffkit.families.stable_diffusion_3 import STABLE_DIFFUSION_3

__all__ = ["FLOW_EDITS", "flux_steps", "never_guided"]

_EULER = ("FlowMatchEulerDiscreteScheduler",)  # the one that adds noise to a picture by the scale_noise that they call


def flux_steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    """The noise levels of FLUX.1 and their shift, whatever the scheduler."""
    return linear_sigmas(pipe, steps, patches(pipe, size))


def never_guided(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
    """No second pass for a negative prompt."""
    return False


def _kontext_size(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    """Kontext keeps the shape of what is asked for, and makes its area ``max_area``."""
    area, cell = cast("int", options.get("max_area", 1024**2)), pipe.vae_scale_factor * 2
    height, width = round((area * size.height / size.width) ** 0.5), round((area * size.width / size.height) ** 0.5)
    made = Size(height // cell * cell, width // cell * cell)
    if made == size:
        return None
    return (
        f"of {size.width}x{size.height} it makes {made.width}x{made.height}, an area of max_area={area} pixels; ask "
        f"for height={made.height} and width={made.width}, or give max_area={size.height * size.width}"
    )


def _shaped(picture: Image.Image, area: int) -> Size:
    """Of a picture's shape, in area about so many pixels, as Qwen-Image-Edit computes it."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit

    width, height, *_ = pipeline_qwenimage_edit.calculate_dimensions(area, picture.width / picture.height)
    return Size(height, width)


def _edit_size(pipe: Pipeline, picture: Any) -> Size:
    """Of Qwen-Image-Edit: of the picture's shape, or the last one's of several, in area about 1024 x 1024."""
    pictures = _listed(picture)
    for each in pictures:
        if not isinstance(each, Image.Image):
            raise InputError(f"A {type(pipe).__name__} needs image= as a PIL image, got a {type(each).__name__}.")
    height, width = _shaped(pictures[-1], 1024 * 1024)
    cell = pipe.vae_scale_factor * 2
    return Size(height // cell * cell, width // cell * cell)


def _listed(picture: Any) -> list[Any]:
    return list(picture) if isinstance(picture, list | tuple) else [picture]


def _given(pipe: Pipeline, options: Mapping[str, object]) -> Any:
    """The picture that is read together with all prompts."""
    if options.get("image") is None:
        raise InputError(
            f"{type(pipe).__name__} reads prompts together with the picture: give image=, one for all prompts; call it "
            f"once for each picture."
        )
    return options["image"]


def _seen_by_encoder(pipe: Pipeline, options: Mapping[str, object]) -> dict[str, object]:
    """The picture as the text encoder of Qwen-Image-Edit sees it."""
    picture = _given(pipe, options)
    return {"image": pipe.image_processor.resize(picture, *_shaped(picture, 1024 * 1024))}


def _references_seen_by_encoder(pipe: Pipeline, options: Mapping[str, object]) -> dict[str, object]:
    """The pictures as the text encoder of Qwen-Image-Edit-Plus sees them."""
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE

    pictures = _listed(_given(pipe, options))
    return {"image": [pipe.image_processor.resize(each, *_shaped(each, CONDITION_IMAGE_SIZE)) for each in pictures]}


_FLUX = {"steps": flux_steps, "noise_shape": cell_noise_shape, "schedulers": _EULER}
_SD3 = {"noise_shape": map_noise_shape, "schedulers": _EULER}

FLOW_EDITS: tuple[Family, ...] = (
    from_picture(
        STABLE_DIFFUSION_3, "Stable Diffusion 3/3.5, image-to-image", "StableDiffusion3Img2ImgPipeline", shared=_SD3
    ),
    from_picture(
        STABLE_DIFFUSION_3,
        "Stable Diffusion 3/3.5, inpainting",
        "StableDiffusion3InpaintPipeline",
        pictures=("image", "mask_image", "masked_image_latents"),
        spare_pictures=frozenset({"masked_image_latents"}),
        reasons=CROP,
        to_vae=unscaled,  # its pipeline leaves out the shift
        shared=_SD3,
    ),
    from_picture(FLUX, "FLUX.1, image-to-image", "FluxImg2ImgPipeline", beside=no_refusal, shared=_FLUX),
    from_picture(
        FLUX,
        "FLUX.1, inpainting",
        "FluxInpaintPipeline",
        pictures=("image", "mask_image", "masked_image_latents"),
        spare_pictures=frozenset({"masked_image_latents"}),
        reasons=CROP,
        beside=no_refusal,
        shared=_FLUX,
    ),
    from_picture(
        FLUX,
        "FLUX.1 Fill",
        "FluxFillPipeline",
        pictures=("image", "mask_image"),
        reasons=MADE,
        guided=never_guided,
        guidance="told to the denoiser",
        beside=no_refusal,
        shared=_FLUX,
    ),
    from_picture(
        FLUX,
        "FLUX.1 Kontext",
        "FluxKontextPipeline",
        spare_pictures=frozenset({"image"}),
        beside=_kontext_size,
        refused="sizes that max_area would change",
        prepared_again=False,  # it draws the initial noise only
        steps=flux_steps,
        schedulers=_EULER,
    ),
    from_picture(
        QWEN_IMAGE,
        "Qwen-Image-Edit",
        "QwenImageEditPipeline",
        size_of_picture=_edit_size,
        encoded_with_picture=_seen_by_encoder,
        prepared_again=False,  # it draws the initial noise only
        schedulers=_EULER,
    ),
    from_picture(
        QWEN_IMAGE,
        "Qwen-Image-Edit-Plus",
        "QwenImageEditPlusPipeline",
        references=True,
        one_row=True,
        size_of_picture=_edit_size,
        encoded_with_picture=_references_seen_by_encoder,
        prepared_again=False,
        schedulers=_EULER,
    ),
    from_picture(QWEN_IMAGE, "Qwen-Image, image-to-image", "QwenImageImg2ImgPipeline", schedulers=_EULER),
    from_picture(
        QWEN_IMAGE,
        "Qwen-Image, inpainting",
        "QwenImageInpaintPipeline",
        pictures=("image", "mask_image"),
        reasons={**CROP, **MADE},
        schedulers=_EULER,
    ),
)
