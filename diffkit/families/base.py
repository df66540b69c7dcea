"""Descriptor of a family of diffusers pipelines, with the defaults that most families share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.prompt_embeds import Embeds, Layout

__all__ = [
    "DIFFUSION",
    "FLOW",
    "FLOW_NOISY",
    "FLOW_SHIFTED",
    "Autoencoder",
    "Call",
    "Decoding",
    "Family",
    "Inputs",
    "Pipeline",
    "Scheduler",
    "Size",
    "VideoSize",
    "as_size",
    "has_strength",
    "keywords_of",
    "scaled",
    "shifted",
    "size_of_latents",
    "stock_class",
    "stock_default",
    "unscaled",
    "unshifted",
]

# diffusers registers a pipeline's modules by name at run time, and its schedulers share no typed base: no static type
# says what they have. These aliases name what is meant; `family_of` and `solver_of` check it.
Pipeline: TypeAlias = Any  # a diffusers.DiffusionPipeline
Scheduler: TypeAlias = Any  # a diffusers.SchedulerMixin
Autoencoder: TypeAlias = Any  # a diffusers.AutoencoderKL or AutoencoderTiny


DIFFUSION = (
    "DDIMScheduler",
    "DDPMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
FLOW = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
#: Where the pipeline's loop hands its generator over, from which the noise of this one comes.
FLOW_NOISY = (*FLOW, "FlowMatchLCMScheduler")
#: Where the pipeline gives the scheduler its noise levels, or how far to shift them.
FLOW_SHIFTED = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler")


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class VideoSize(Size):
    """Of a video: height and width in pixels as of an image, and beside them the number of frames.

    Example:
        >>> size = VideoSize(480, 832, frames=81)
        >>> size.height, tuple(size), size.frames, as_size(size) is size
        (480, (480, 832), 81, True)
    """

    frames: int

    def __new__(cls, height: int, width: int, frames: int = 1) -> Self:
        """A pair that knows its number of frames."""
        size = super().__new__(cls, height, width)
        size.frames = frames
        return size


def as_size(size: tuple[int, int]) -> Size:
    """A :class:`Size` of (height, width); one that is a size already stays what it is."""
    return size if isinstance(size, Size) else Size(*size)


@dataclass(frozen=True)
class Call:
    """One call of the denoiser.

    Attributes:
        latents: (B, C, h, w), or (B, tokens, C) where the pipeline packs them, as the pipeline's own loop carries them.
        timesteps: scalar or (B,), in the scheduler's units.
        embeds: B rows.
        guidance_scale: for denoisers that take it as an input.
        size: of the image that the latents decode to.
    """

    latents: Tensor
    timesteps: Tensor
    embeds: Embeds
    guidance_scale: float
    size: Size

    def each_timestep(self) -> Tensor:
        """(B,) timesteps."""
        return self.timesteps.to(self.latents.device).expand(len(self.latents))


class Inputs(NamedTuple):
    """Positional and keyword arguments of the denoiser."""

    positional: tuple[object, ...]
    named: Mapping[str, object]


class Decoding(NamedTuple):
    """What the decoding of videos depends on beside their latents.

    Attributes:
        size: of the videos.
        generators: one for each row, where its denoising stands; only copies of them advance. None where only the cost
            of decoding counts.
        options: further keyword arguments of the pipeline's call.
        dtype: precision of the encoded prompts.
    """

    size: Size
    generators: Sequence[torch.Generator] | None
    options: Mapping[str, object]
    dtype: torch.dtype


def no_refusal(pipe: Pipeline, options: Mapping[str, object], size: Size) -> str | None:
    """Nothing is refused."""
    return None


def _all_steps(pipe: Pipeline, options: Mapping[str, object], timesteps: Tensor) -> int:
    return len(timesteps)


def _all_along(pipe: Pipeline, options: Mapping[str, object]) -> str | None:
    return None


def _unchanged(options: Mapping[str, object], start: int, stop: int | None, steps: int) -> Mapping[str, object]:
    return options


def classifier_free(pipe: Pipeline, guidance_scale: float, options: Mapping[str, object]) -> bool:
    """Guidance by a second prediction for the negative prompt, at any scale above 1."""
    return guidance_scale > 1


def _default_size(pipe: Pipeline) -> Size:
    """What the denoiser's configuration says, a side or (height, width) in latent cells."""
    side = (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return Size(height * pipe.vae_scale_factor, width * pipe.vae_scale_factor)


def _noise_shape(pipe: Pipeline, size: Size) -> tuple[int, ...]:
    """(C, h, w), channels as the denoiser takes them."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    factor = pipe.vae_scale_factor
    return (denoiser.config.in_channels, size.height // factor, size.width // factor)


def _as_drawn(pipe: Pipeline, latents: Tensor) -> Tensor:
    return latents


def _as_carried(pipe: Pipeline, latents: Tensor, size: Size) -> Tensor:
    return latents


def _plain_steps(pipe: Pipeline, steps: int, size: Size) -> dict[str, object]:
    return {"num_inference_steps": steps}


def scaled(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    """Times the VAE's scale."""
    result: Tensor = latents * vae.config.scaling_factor
    return result


def unscaled(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    """The inverse of :func:`scaled`."""
    result: Tensor = latents / vae.config.scaling_factor
    return result


def shifted(pipe: Pipeline, latents: Tensor, vae: Autoencoder) -> Tensor:
    """Less the VAE's shift, times its scale."""
    result: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return result


def unshifted(pipe: Pipeline, latents: Tensor, vae: Autoencoder, size: Size) -> Tensor:
    """The inverse of :func:`shifted`."""
    result: Tensor = (latents / vae.config.scaling_factor) + vae.config.shift_factor
    return result


def _first_tensor(output: Any, call: Call) -> Tensor:
    first: Tensor = output[0]
    return first


@dataclass(frozen=True)
class Family:
    """A family of diffusers pipelines.

    Attributes:
        name: used in messages.
        pipeline: name of the stock class; its subclasses belong to the family too.
        denoiser: the pipeline's attribute that holds the denoiser.
        schedulers: those that its pipeline works with and a search can cut; of a flow model, those that are not named
            after flows with ``use_flow_sigmas``.
        encoded: the keywords of what ``encode_prompt`` returns for the positive prompt, by position; None for what is
            not carried. The keyword of the negative prompt is the same after ``negative_``.
        inputs: (pipeline, call) -> the denoiser's arguments, just as the pipeline's loop gives them.
        output: (the denoiser's output tuple, call) -> prediction as ``scheduler.step`` takes it, shaped as the latents.
        guided: (pipeline, guidance scale, further keyword arguments with ``negative_prompt``) -> whether negatives
            are needed.
        guidance: how the pipeline guides, in words, for the table of families only.
        guidance_batched: whether a guided step is one call of the denoiser on the rows [negative; positive].
        default_size: (pipeline) -> pixels when the call names none.
        multiple: (pipeline) -> what height and width must be multiples of.
        sides_together: whether its pipeline ignores a height without a width, and a width without a height.
        noise_shape: (pipeline, size) -> shape of one row of initial noise as the pipeline draws it.
        noise_dtype: the precision in which the pipeline draws noise and carries latents; the prompts' own where None.
        pack: (pipeline, drawn noise) -> latents as the loop carries them.
        resumed: (pipeline, latents as the loop carries them, size) -> what the call takes as ``latents``.
        shown: (pipeline, latents as the loop carries them, size) -> what the call returns as latents; None where it
            returns those of its loop.
        latents_are_map: whether these are pictures (B, C, h, w), not packed into tokens (B, tokens, C).
        to_denoiser: (pipeline, latents as the VAE encodes them, VAE) -> latents as the loop carries them.
        to_vae: (pipeline, latents, VAE, size) -> the inverse, by the very expression of the pipeline's own decoding.
        frames: whether the VAE is one of videos, in which an image is a frame.
        frames_made: of a family that makes videos: (pipeline, ``num_frames`` of the call) -> frames of its video.
        decode: of a family that makes videos: (pipeline, latents as the loop carries them, VAE, decoding) -> what the
            VAE decodes, (B, 3, frames, H, W), just as the pipeline does it.
        upcasts: whether the pipeline decodes in float32 where the VAE is in half precision and says ``force_upcast``.
        steps: (pipeline, number, size) -> what the pipeline gives to ``scheduler.set_timesteps``.
        encoding: keywords of the call that only shape the encoding of prompts.
        layout: see :class:`diffkit.prompt_embeds.Embeds`.
        encode_negative: (pipeline, [text], keywords that shape the encoding) -> what ``encode_prompt`` would return
            for it as a negative prompt, where that is not what it returns for a prompt.
        spare_encoders: text encoders without which the pipeline encodes prompts too.
        zeros_for_none: whether zeros stand for a negative prompt that is not given, where the model's configuration
            says ``force_zeros_for_empty_prompt``.
        image_prompts: whether its denoiser reads image prompts (IP-Adapter) from ``added_cond_kwargs``.
        control: keyword of the one image that a ControlNet follows; None where there is no ControlNet.
        edits: whether its pipeline is made for pictures, and commands that take prompts alone refuse it.
        pictures: keywords of pictures that the pipeline begins from or paints in, one for all prompts or one for each;
            the first of them, where there is one, is repeated for each candidate of a batch.
        spare_pictures: those of them that may be left out.
        references: whether a list in the place of its first picture is several of one prompt, not one of each prompt.
        mixed_rows: (further keyword arguments) -> what of a row the pipeline gives to another row of a batch, or None.
        one_row: whether its call makes one image at a time.
        size_of_picture: (pipeline, its first picture) -> size of the images where the call says none; None where the
            picture does not decide it.
        encoded_with_picture: (pipeline, keyword arguments of the call) -> what ``encode_prompt`` reads beside the text;
            None where it reads the text alone.
        prepared_again: whether its call draws more than the initial noise before the loop, so that a part of a
            denoising lets it prepare all of that again, see :mod:`diffkit.prepared_again`.
        fixed: keywords of the call that are always given beside the encoded prompts.
        text_attention: whether detectors can read how the image attends to the text: cross-attention named ``attn2``,
            or joint attention with ``add_k_proj``.
        end_token: the tokenizer whose end token stands exactly once in the carried sequence; None where there is no
            single one.
        search_only: why only a search takes it, no audit; None where audits do too.
        no_gradient: why the denoiser's gradient in the text is not that of its prediction; None where it is.
        rounds: whether its pipeline rounds a size down to what fits ``multiple``, with a warning.
        calls: (pipeline, further keyword arguments, the scheduler's timesteps) -> how many of them its loop makes.
        part: (further keyword arguments, start, stop, number of steps as asked for) -> those of a call that makes the
            steps [start, stop) only, so that it does what the whole call does in them. Without a stop, of a call that
            jumps over steps: those that do not count them.
        whole_only: (pipeline, further keyword arguments) -> why its denoising cannot be cut, or None.
        refusals: (pipeline, further keyword arguments, size) -> why its denoising cannot be run here, or None.
        refused: what is refused, in words, for the table of families only.
    """

    name: str
    pipeline: str
    denoiser: Literal["unet", "transformer"]
    encoded: tuple[str | None, ...]
    inputs: Callable[[Pipeline, Call], Inputs]
    output: Callable[[Any, Call], Tensor] = _first_tensor
    schedulers: tuple[str, ...] = DIFFUSION
    guided: Callable[[Pipeline, float, Mapping[str, object]], bool] = classifier_free
    guidance: str = "classifier-free, one batch of both"
    guidance_batched: bool = True
    default_size: Callable[[Pipeline], Size] = _default_size
    multiple: Callable[[Pipeline], int] = lambda pipe: 8
    sides_together: bool = False
    noise_shape: Callable[[Pipeline, Size], tuple[int, ...]] = _noise_shape
    noise_dtype: torch.dtype | None = None
    pack: Callable[[Pipeline, Tensor], Tensor] = _as_drawn
    resumed: Callable[[Pipeline, Tensor, Size], Tensor] = _as_carried
    shown: Callable[[Pipeline, Tensor, Size], Tensor] | None = None
    latents_are_map: bool = True
    to_denoiser: Callable[[Pipeline, Tensor, Autoencoder], Tensor] = scaled
    to_vae: Callable[[Pipeline, Tensor, Autoencoder, Size], Tensor] = unscaled
    frames: bool = False
    frames_made: Callable[[Pipeline, int], int] | None = None
    decode: Callable[[Pipeline, Tensor, Autoencoder, Decoding], Tensor] | None = None
    upcasts: bool = False
    steps: Callable[[Pipeline, int, Size], dict[str, object]] = _plain_steps
    encoding: frozenset[str] = frozenset()
    layout: Layout = "fixed"
    encode_negative: Callable[[Pipeline, list[str] | None, Mapping[str, object]], tuple[Any, ...]] | None = None
    spare_encoders: frozenset[str] = frozenset()
    zeros_for_none: bool = False
    image_prompts: bool = False
    control: str | None = None
    edits: bool = False
    pictures: tuple[str, ...] = ()
    spare_pictures: frozenset[str] = frozenset()
    references: bool = False
    mixed_rows: Callable[[Mapping[str, object]], str | None] = lambda options: None
    one_row: bool = False
    size_of_picture: Callable[[Pipeline, Any], Size] | None = None
    encoded_with_picture: Callable[[Pipeline, Mapping[str, object]], dict[str, object]] | None = None
    prepared_again: bool = False
    fixed: Mapping[str, object] = field(default_factory=dict)
    text_attention: bool = False
    end_token: Literal["tokenizer", "tokenizer_2"] | None = None
    search_only: str | None = None
    no_gradient: str | None = None
    rounds: bool = False
    calls: Callable[[Pipeline, Mapping[str, object], Tensor], int] = _all_steps
    part: Callable[[Mapping[str, object], int, int | None, int], Mapping[str, object]] = _unchanged
    whole_only: Callable[[Pipeline, Mapping[str, object]], str | None] = _all_along
    refusals: Callable[[Pipeline, Mapping[str, object], Size], str | None] = no_refusal
    refused: str = "nothing"

    @property
    def prediction(self) -> str:
        """What the denoiser predicts."""
        if self.schedulers[0] == "SCMScheduler":
            return "v of TrigFlow"
        return "velocity of a flow" if self.schedulers[0] == FLOW[0] else "noise, v or sample"

    @property
    def makes_videos(self) -> bool:
        """Whether what it makes has frames."""
        return self.frames_made is not None

    @property
    def companions(self) -> tuple[str, ...]:
        """Keywords of what is carried beside ``prompt_embeds``."""
        return tuple(name for name in self.encoded if name is not None and name != "prompt_embeds")


def stock_class(family: Family) -> Any:
    """The stock pipeline class of a family."""
    import diffusers

    return getattr(diffusers, family.pipeline)


@functools.cache
def keywords_of(cls: Any) -> Mapping[str, inspect.Parameter]:
    """The keyword arguments of a pipeline class's call, without ``self`` and catch-alls."""
    parameters = inspect.signature(cls.__call__).parameters
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    return {name: parameter for name, parameter in parameters.items() if name != "self" and parameter.kind in named}


def stock_default(family: Family, keyword: str) -> Any:
    """The default of a keyword argument of the stock call; None where there is no such keyword."""
    parameter = keywords_of(stock_class(family)).get(keyword)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def has_strength(family: Family) -> bool:
    """Whether its pipeline leaves out the first steps, as many as ``strength`` says."""
    return "strength" in keywords_of(stock_class(family))


def size_of_latents(pipe: Pipeline, family: Family, latents: Tensor) -> Size:
    """Size of the image that latents decode to; packed latents are taken for the default size, else for a square.

    Raises:
        InputError: packed latents of neither.
    """
    if latents.ndim > 3:
        factor = pipe.vae_scale_factor if latents.ndim == 4 else pipe.vae_scale_factor_spatial
        return Size(latents.shape[-2] * factor, latents.shape[-1] * factor)
    default = family.default_size(pipe)
    cell = family.multiple(pipe)
    side = round(latents.shape[1] ** 0.5)
    for height, width in ((default.height // cell, default.width // cell), (side, side)):
        if height * width == latents.shape[1]:
            return Size(height * cell, width * cell)
    raise InputError(
        f"{latents.shape[1]} packed latents are no square and not the model's own size; say their height and width."
    )
