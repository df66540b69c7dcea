"""Image-to-image and inpainting with Stable Diffusion 1 and 2 and SDXL, each alone or with ControlNet."""

from __future__ import annotations

from diffkit.families.base import Family, scaled, unscaled
from diffkit.families.pictures import CROP, PARTS, from_picture, map_noise_shape, size_of_picture
from diffkit.families.stable_diffusion import SDXL, SDXL_CONTROLNET, STABLE_DIFFUSION, STABLE_DIFFUSION_CONTROLNET

__all__ = ["STABLE_DIFFUSION_EDITS"]

_MASKED = ("image", "mask_image", "masked_image_latents")
_SPARE = frozenset({"masked_image_latents"})

STABLE_DIFFUSION_EDITS: tuple[Family, ...] = (
    from_picture(
        STABLE_DIFFUSION,
        "Stable Diffusion 1/2, image-to-image",
        "StableDiffusionImg2ImgPipeline",
        size_of_picture=size_of_picture,
        noise_shape=map_noise_shape,
        sides_together=False,
    ),
    from_picture(
        STABLE_DIFFUSION,
        "Stable Diffusion 1/2, inpainting",
        "StableDiffusionInpaintPipeline",
        pictures=_MASKED,
        spare_pictures=_SPARE,
        reasons=CROP,
        noise_shape=map_noise_shape,
        sides_together=False,
    ),
    from_picture(
        STABLE_DIFFUSION_CONTROLNET,
        "Stable Diffusion 1/2 with ControlNet, image-to-image",
        "StableDiffusionControlNetImg2ImgPipeline",
        size_of_picture=size_of_picture,
        control="control_image",
        noise_shape=map_noise_shape,
    ),
    from_picture(
        STABLE_DIFFUSION_CONTROLNET,
        "Stable Diffusion 1/2 with ControlNet, inpainting",
        "StableDiffusionControlNetInpaintPipeline",
        pictures=("image", "mask_image"),
        size_of_picture=size_of_picture,
        reasons=CROP,
        control="control_image",
        noise_shape=map_noise_shape,
    ),
    from_picture(
        SDXL,
        "SDXL, image-to-image",
        "StableDiffusionXLImg2ImgPipeline",
        size_of_picture=size_of_picture,
        reasons=PARTS,
        noise_shape=map_noise_shape,
    ),
    from_picture(
        SDXL,
        "SDXL, inpainting",
        "StableDiffusionXLInpaintPipeline",
        pictures=_MASKED,
        spare_pictures=_SPARE,
        reasons={**PARTS, **CROP},
        noise_shape=map_noise_shape,
    ),
    from_picture(
        SDXL_CONTROLNET,
        "SDXL with ControlNet, image-to-image",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        size_of_picture=size_of_picture,
        control="control_image",
        noise_shape=map_noise_shape,
    ),
    from_picture(
        SDXL_CONTROLNET,
        "SDXL with ControlNet, inpainting",
        "StableDiffusionXLControlNetInpaintPipeline",
        pictures=("image", "mask_image"),
        size_of_picture=size_of_picture,
        reasons={**PARTS, **CROP},
        control="control_image",
        noise_shape=map_noise_shape,
        to_denoiser=scaled,
        to_vae=unscaled,
    ),
)
