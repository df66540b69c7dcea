"""FLUX.1 led by a picture: Control models (depth, edges) and ControlNets, alone and with a picture to begin from.

They sample the latents of the picture that leads with the generator that draws the noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffkit.families.base import Family, Pipeline, Size
from diffkit.families.flow_edit import flux_steps, never_guided
from diffkit.families.flux import FLUX
from diffkit.families.pictures import CROP, MADE, cell_noise_shape, from_picture
from diffkit.families.stable_diffusion import STABLE_DIFFUSION_CONTROLNET

__all__ = ["FLUX_CONTROLS"]


def _several_nets(pipe: Pipeline, _options: Mapping[str, object], _size: Size) -> str | None:
    return "several ControlNets of FLUX.1 are not carried; give one" if hasattr(pipe.controlnet, "nets") else None


_ALL: dict[str, object] = {
    "steps": flux_steps,
    "noise_shape": cell_noise_shape,
    "schedulers": ("FlowMatchEulerDiscreteScheduler",),
}
_UNGUIDED: dict[str, object] = {**_ALL, "guided": never_guided, "guidance": "told to the denoiser"}
_NET: dict[str, object] = {
    "whole_only": STABLE_DIFFUSION_CONTROLNET.whole_only,
    "refused": f"several ControlNets, {STABLE_DIFFUSION_CONTROLNET.refused}",
}

FLUX_CONTROLS: tuple[Family, ...] = (
    from_picture(
        FLUX,
        "FLUX.1 Control",
        "FluxControlPipeline",
        pictures=("control_image",),
        shared=_UNGUIDED,
    ),
    from_picture(
        FLUX,
        "FLUX.1 Control, image-to-image",
        "FluxControlImg2ImgPipeline",
        pictures=("image", "control_image"),
        shared=_UNGUIDED,
    ),
    from_picture(
        FLUX,
        "FLUX.1 with ControlNet",
        "FluxControlNetPipeline",
        pictures=("control_image",),
        beside=_several_nets,
        shared={**_ALL, **_NET},
    ),
    from_picture(
        FLUX,
        "FLUX.1 with ControlNet, image-to-image",
        "FluxControlNetImg2ImgPipeline",
        pictures=("image", "control_image"),
        beside=_several_nets,
        shared={**_UNGUIDED, **_NET},
    ),
    from_picture(
        FLUX,
        "FLUX.1 with ControlNet, inpainting",
        "FluxControlNetInpaintPipeline",
        pictures=("image", "mask_image", "control_image"),
        reasons={**CROP, **MADE},
        beside=_several_nets,
        shared={**_UNGUIDED, **_NET},
    ),
)
