"""Families of diffusers pipelines, one descriptor each."""

from __future__ import annotations

from collections.abc import Mapping

from diffkit.errors import InputError
from diffkit.families.aura_flow import AURA_FLOW
from diffkit.families.base import (
    Autoencoder,
    Call,
    Family,
    Inputs,
    Pipeline,
    Scheduler,
    Size,
    VideoSize,
    as_size,
    stock_class,
    stock_default,
)
from diffkit.families.cogview4 import COGVIEW4
from diffkit.families.flow_edit import FLOW_EDITS
from diffkit.families.flux import CHROMA, FLUX
from diffkit.families.flux2 import FLUX2, FLUX2_KLEIN
from diffkit.families.flux_control import FLUX_CONTROLS
from diffkit.families.hidream import HIDREAM
from diffkit.families.hunyuan_video import HUNYUAN_VIDEO
from diffkit.families.ltx import LTX
from diffkit.families.lumina2 import LUMINA2, Z_IMAGE
from diffkit.families.nearest import nearest_family, why_unknown
from diffkit.families.pixart_sana import PIXART_ALPHA, PIXART_SIGMA, SANA, SANA_SPRINT
from diffkit.families.qwen_image import QWEN_IMAGE
from diffkit.families.stable_diffusion import (
    KOLORS,
    SDXL,
    SDXL_CONTROLNET,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_CONTROLNET,
)
from diffkit.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from diffkit.families.stable_diffusion_edit import STABLE_DIFFUSION_EDITS
from diffkit.families.wan import WAN

__all__ = [
    "FAMILIES",
    "REFUSED_PIPELINES",
    "SEARCH_FAMILIES",
    "Autoencoder",
    "Call",
    "Family",
    "Inputs",
    "Pipeline",
    "Scheduler",
    "Size",
    "VideoSize",
    "any_family_of",
    "as_size",
    "default_size",
    "family_of",
    "is_guided",
    "nearest_family",
    "pipe_denoiser",
    "refuse_pictures",
    "stock_class",
    "why_unknown",
]

FAMILIES: tuple[Family, ...] = (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_CONTROLNET,
    SDXL,
    SDXL_CONTROLNET,
    KOLORS,
    STABLE_DIFFUSION_3,
    FLUX,
    FLUX2,
    FLUX2_KLEIN,
    CHROMA,
    PIXART_ALPHA,
    PIXART_SIGMA,
    SANA,
    LUMINA2,
    Z_IMAGE,
    QWEN_IMAGE,
    AURA_FLOW,
    COGVIEW4,
    HIDREAM,
    *STABLE_DIFFUSION_EDITS,
    *FLOW_EDITS,
    *FLUX_CONTROLS,
)

#: Of pipelines that only a search takes; :attr:`Family.search_only` says why.
SEARCH_FAMILIES: tuple[Family, ...] = (SANA_SPRINT, WAN, LTX, HUNYUAN_VIDEO)

_DRAWN = "it draws noise when it encodes the control image, from torch's global generator; no seed could draw it again"
REFUSED_PIPELINES = {
    "StableDiffusion3ControlNetPipeline": _DRAWN,
    "StableDiffusion3ControlNetInpaintingPipeline": _DRAWN,
    "CogVideoXPipeline": "its loop is not known here; use WanPipeline, LTXPipeline or HunyuanVideoPipeline",
}


def family_of(pipe: Pipeline) -> Family:
    """The family of a pipeline that more than a search takes, as :func:`any_family_of` finds it.

    Raises:
        InputError: no descriptor fits this pipeline, or only a search takes it.
    """
    family = any_family_of(pipe)
    if family.search_only is not None:
        raise InputError(f"A {family.pipeline} is for TTSnapPipeline.from_pipe(pipe) only: {family.search_only}.")
    return family


def any_family_of(pipe: Pipeline) -> Family:
    """The family, of images or of videos, whose stock class ``type(pipe)`` is or derives from.

    Raises:
        InputError: no descriptor fits this pipeline.
    """
    ancestors = {base.__name__ for base in type(pipe).__mro__}
    for family in (*FAMILIES, *SEARCH_FAMILIES):
        if family.pipeline in ancestors:
            return family
    for name, reason in REFUSED_PIPELINES.items():
        if name in ancestors:
            raise InputError(f"A {name} cannot be cut in mid-denoising: {reason}.")
    known, why = ", ".join(family.pipeline for family in FAMILIES), why_unknown(type(pipe), FAMILIES)
    raise InputError(f"{type(pipe).__name__} belongs to no known family of pipelines: {why}. Known are {known}.")


def pipe_denoiser(pipe: Pipeline) -> Pipeline:
    """The pipeline's denoiser, a U-Net or a transformer."""
    return getattr(pipe, any_family_of(pipe).denoiser)


def refuse_pictures(pipe: Pipeline) -> None:
    """Refuse a pipeline that begins from a picture where there is only text.

    Raises:
        InputError: see there.
    """
    family = any_family_of(pipe)
    if family.edits:
        raise InputError(
            f"A {family.pipeline} begins from a picture ({', '.join(family.pictures)}), and here are prompts only; "
            f"give a model of text alone, or search with TTSnapPipeline in Python."
        )


def is_guided(pipe: Pipeline, guidance_scale: float | None, options: Mapping[str, object] | None = None) -> bool:
    """Whether the pipeline will predict for the negative prompt too: two rows of the denoiser for one image.

    Args:
        guidance_scale: the pipeline's own default when None.
        options: further keyword arguments of the call, with ``negative_prompt`` where there is one.
    """
    family = any_family_of(pipe)
    scale = stock_default(family, "guidance_scale") if guidance_scale is None else guidance_scale
    return family.guided(pipe, 1.0 if scale is None else scale, options or {})


def default_size(pipe: Pipeline) -> Size:
    """Height and width in pixels of what the pipeline makes when no size is given, of a video with its frames."""
    return any_family_of(pipe).default_size(pipe)
