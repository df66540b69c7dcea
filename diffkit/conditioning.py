"""Encode prompts once, and call the denoiser with the embeddings as the pipeline itself does."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffkit.errors import InputError
from diffkit.families import Call, Family, Pipeline, any_family_of, as_size, refuse_pictures
from diffkit.families.base import size_of_latents, stock_default
from diffkit.given_embeds import GivenEmbeds, given_rows, has_embeds, refuse_missing_encoders
from diffkit.prompt_embeds import MASK, Embeds

__all__ = [
    "Conditioning",
    "Embeds",
    "denoiser_call",
    "encode_prompts",
    "initial_latents",
    "latent_shape",
    "predict_noise",
]


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts and negative prompts.

    Attributes:
        positive: n rows.
        negative: n rows, or None without guidance.
        own: further keyword arguments of each prompt's own, such as the image that it follows; nothing where all
            prompts have the same. Rows of different prompts then run in different calls.
    """

    positive: Embeds
    negative: Embeds | None = None
    own: Sequence[Mapping[str, object]] = ()

    def __len__(self) -> int:
        return len(self.positive)

    @property
    def prompt_embeds(self) -> Tensor:
        """(n, L, D)."""
        return self.positive.prompt_embeds

    @property
    def negative_prompt_embeds(self) -> Tensor | None:
        """(n, L, D), or None without guidance."""
        return None if self.negative is None else self.negative.prompt_embeds

    def rows(self, indices: Sequence[int]) -> Conditioning:
        """The rows at ``indices``, in that order; an index may come back several times."""
        negative = None if self.negative is None else self.negative.rows(indices)
        own = [self.own[index] for index in indices] if self.own else ()
        return Conditioning(self.positive.rows(indices), negative, own)

    def repeat(self, n: int) -> Conditioning:
        """Every row ``n`` times, copies next to each other."""
        negative = None if self.negative is None else self.negative.repeat(n)
        return Conditioning(self.positive.repeat(n), negative, [own for own in self.own for _ in range(n)])

    def width(self, row: int) -> tuple[int, int]:
        """Tokens of a row's texts where only rows of as many go together; else 0."""
        return self.positive.width(row), 0 if self.negative is None else self.negative.width(row)

    def kwargs(self) -> dict[str, object]:
        """The keyword arguments that hand the embeddings to the pipeline, and what is the first row's own."""
        negative = {} if self.negative is None else self.negative.kwargs("negative_")
        return {**self.positive.kwargs(), **negative, **(self.own[0] if self.own else {})}


@torch.no_grad()
def encode_prompts(
    pipe: Pipeline,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | str | None = None,
    *,
    guidance: bool = True,
    clip_skip: int | None = None,
    options: Mapping[str, object] | None = None,
    embeds: GivenEmbeds | None = None,
) -> Conditioning:
    """Embeddings of ``prompts`` by the pipeline's own ``encode_prompt``; each distinct prompt is encoded once, alone.

    Encoding alone keeps a prompt's embedding independent of the prompts beside it.

    Args:
        negative_prompts: one for all, or one for each prompt; None is what the pipeline itself takes when there is
            none: the empty text, or zeros for an SDXL with ``force_zeros_for_empty_prompt``.
        guidance: whether classifier-free guidance will need the negative embeddings.
        clip_skip: how many last layers of the text encoder to leave out; for prompts only, as in diffusers.
        options: further keywords of the family's call that shape the encoding: ``prompt_2``, ``negative_prompt_2``
            (one for all or one for each prompt), ``max_sequence_length`` and so on.
        embeds: prompts, negative prompts or both that are encoded already, under the pipeline's own keywords; their
            texts are not read.

    Raises:
        InputError: no prompts, something that is no string, lists of different lengths, or no text encoder.
    """
    family, given, embeds = any_family_of(pipe), dict(options or {}), embeds or {}
    if isinstance(prompts, str) or not prompts or any(not isinstance(prompt, str) for prompt in prompts):
        raise InputError("Expected a non-empty list of prompts, each a string.")
    texts, negatives = _columns(given, prompts), _columns(given, prompts, "negative_")
    texts["prompt"] = list(prompts)
    shaping = [name for name in family.encoding if name.removeprefix("negative_") not in texts]
    given = {name: given.get(name, stock_default(family, name)) for name in shaping}
    given["lora_scale"] = _lora_scale(options or {})
    skip = given.get("clip_skip") if clip_skip is None else clip_skip
    if family.encoded_with_picture is not None:
        given |= family.encoded_with_picture(pipe, options or {})
    given |= {"device": pipe._execution_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    if has_embeds(embeds):
        positive = _given(pipe, family, embeds, given)
    else:
        positive = _encode(pipe, family, texts, {**given, "clip_skip": skip})
    if not guidance:
        return Conditioning(positive)
    if has_embeds(embeds, "negative_"):
        return _paired(positive, _given(pipe, family, embeds, given, "negative_"))
    if negative_prompts is None and family.zeros_for_none and pipe.config.get("force_zeros_for_empty_prompt"):
        return Conditioning(positive, positive._each(torch.zeros_like))
    negatives["prompt"] = _listed("negative prompts", negative_prompts or "", len(prompts))
    return _paired(positive, _encode(pipe, family, negatives, {**given, "clip_skip": None}, negative=True))


def _given(
    pipe: Pipeline, family: Family, embeds: GivenEmbeds, options: Mapping[str, object], prefix: str = ""
) -> Embeds:
    """Rows of texts that are encoded already."""
    rows = given_rows(pipe, family, embeds, options, prefix)
    return Embeds.cat([_embeds(family, pipe.encode_prompt(**row)) for row in rows])


def _paired(positive: Embeds, negative: Embeds) -> Conditioning:
    """Both, which most pipelines put into one batch.

    Raises:
        InputError: there is not one negative prompt for each prompt, or of another length where all have the same.
    """
    if len(negative) != len(positive):
        raise InputError(f"Got {len(negative)} encoded negative prompts for {len(positive)} prompts; give one each.")
    shapes = [tuple(part.prompt_embeds.shape[1:]) for part in (positive, negative)]
    if not positive.varies and shapes[0] != shapes[1]:
        raise InputError(
            f"Encoded prompts and negative prompts must have the same shape when passed directly: the prompts are "
            f"encoded in {shapes[0]} numbers each and the negative prompts in {shapes[1]}; encode both alike, and give "
            f"prompt_embeds and negative_prompt_embeds."
        )
    return Conditioning(positive, negative)


def _lora_scale(options: Mapping[str, object]) -> object:
    """How much LoRA layers of the text encoders count, where the call says so."""
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        if isinstance(given := options.get(name), Mapping):
            return given.get("scale")
    return None


def _listed(name: str, given: object, n: int) -> list[str | None]:
    """One text for each of ``n`` prompts."""
    texts = [given] * n if isinstance(given, str | None) else list(given) if isinstance(given, Sequence) else []
    if len(texts) != n:
        raise InputError(f"Got {len(texts)} {name} for {n} prompts; give one each.")
    return texts


def _columns(given: dict[str, object], prompts: Sequence[str], prefix: str = "") -> dict[str, list[str | None]]:
    """Take the texts for further encoders out of the options, one list for each encoder."""
    names = [f"prompt_{number}" for number in (2, 3, 4)]
    return {name: _listed(prefix + name, given.pop(prefix + name, None), len(prompts)) for name in names}


def _encode(
    pipe: Pipeline,
    family: Family,
    columns: Mapping[str, list[str | None]],
    options: Mapping[str, object],
    *,
    negative: bool = False,
) -> Embeds:
    """Rows of texts, each through ``encode_prompt`` by itself; equal rows once."""
    refuse_missing_encoders(pipe, family)
    accepted = inspect.signature(pipe.encode_prompt).parameters
    shared = {name: value for name, value in options.items() if name in accepted}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    encoded: dict[tuple[str | None, ...], Embeds] = {}
    for row in rows:
        key = tuple(row.values())
        if key not in encoded:
            texts = {name: None if text is None else [text] for name, text in row.items() if name in accepted}
            own = family.encode_negative if negative else None
            outputs = pipe.encode_prompt(**texts, **shared) if own is None else own(pipe, texts["prompt"], options)
            encoded[key] = _embeds(family, outputs)
    return Embeds.cat([encoded[tuple(row.values())] for row in rows])


def _embeds(family: Family, outputs: Sequence[Tensor | list[Tensor] | None]) -> Embeds:
    """What ``encode_prompt`` returned for one text, under its keywords."""
    named = {name: value for name, value in zip(family.encoded, outputs, strict=False) if name is not None}
    if family.layout == "listed":
        named = {name: value[0][None] for name, value in named.items() if value is not None}
    sequence, *rest = [(name, value) for name, value in named.items() if isinstance(value, Tensor)]
    companions = dict(rest)
    if family.layout == "layered":
        companions = {name: value.transpose(0, 1) if value.ndim > 3 else value for name, value in rest}
    if family.layout not in ("fixed", "layered"):
        ones = torch.ones(sequence[1].shape[:2], dtype=torch.long, device=sequence[1].device)
        companions.setdefault(MASK, ones)
    return Embeds(sequence[1], companions, family.layout)


def denoiser_call(
    pipe: Pipeline,
    latents: Tensor,
    timesteps: Tensor,
    embeds: Embeds | Tensor,
    *,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
) -> Call:
    """What :func:`predict_noise` asks of the denoiser; see there.

    Raises:
        InputError: a bare tensor where the family's denoiser needs more, packed latents of an unknown size, or a
            family that begins from a picture.
    """
    family = any_family_of(pipe)
    refuse_pictures(pipe)
    if isinstance(embeds, Tensor):
        if family.companions:
            raise InputError(
                f"A {family.name} prompt is more than one tensor ({', '.join(family.companions)}); give the Embeds "
                f"that encode_prompts returns."
            )
        embeds = Embeds(embeds)
    scale = stock_default(family, "guidance_scale") if guidance_scale is None else guidance_scale
    pixels = size_of_latents(pipe, family, latents) if size is None else as_size(size)
    return Call(latents, timesteps, embeds, 1.0 if scale is None else scale, pixels)


def predict_noise(
    pipe: Pipeline,
    latents: Tensor,
    timesteps: Tensor,
    embeds: Embeds | Tensor,
    *,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """The denoiser's output without guidance, shaped as ``latents``, as the pipeline itself calls it.

    Differentiable in ``latents`` and in all of ``embeds``. It is what ``scheduler.step`` takes: the predicted noise of
    an epsilon model, the velocity ``noise - x`` of a flow model.

    Args:
        latents: (B, C, h, w), or (B, tokens, C) for families that pack them; noisy, already scaled by
            ``scheduler.scale_model_input`` where the scheduler scales.
        timesteps: (B,) or a scalar tensor, in the scheduler's units.
        embeds: B rows; (B, L, D) alone where the family has nothing beside it.
        guidance_scale: for denoisers that take it as an input (FLUX.1); the pipeline's own default when None.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.

    Raises:
        InputError: as :func:`denoiser_call`; or a gradient is asked for that the family's denoiser does not give.
    """
    family = any_family_of(pipe)
    if family.no_gradient is not None and torch.is_grad_enabled() and _wants_gradient(latents, embeds):
        raise InputError(f"{family.name} cannot be attacked or trained by its gradient: {family.no_gradient}.")
    call = denoiser_call(pipe, latents, timesteps, embeds, guidance_scale=guidance_scale, size=size)
    positional, named = family.inputs(pipe, call)
    return family.output(getattr(pipe, family.denoiser)(*positional, **named, return_dict=False), call)


def _wants_gradient(latents: Tensor, embeds: Embeds | Tensor) -> bool:
    tensors = [embeds] if isinstance(embeds, Tensor) else [embeds.prompt_embeds, *embeds.companions.values()]
    return any(value.requires_grad for value in [latents, *tensors])


def initial_latents(
    pipe: Pipeline,
    generators: Sequence[torch.Generator],
    size: tuple[int, int] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normal latents as the loop carries them, one row from each generator, as the pipeline draws them.

    They are not yet multiplied by the scheduler's ``init_noise_sigma``; a pipeline that is given them does that.

    Args:
        generators: on the host; they advance.
        size: (height, width) in pixels; the model's own when None.
        dtype: the precision to draw in; the one in which the pipeline draws when None.
    """
    family = any_family_of(pipe)
    shape = family.noise_shape(pipe, family.default_size(pipe) if size is None else as_size(size))
    precision = dtype or family.noise_dtype or getattr(pipe, family.denoiser).dtype
    drawn = [torch.randn((1, *shape), generator=generator, dtype=precision) for generator in generators]
    return family.pack(pipe, torch.cat(drawn)).to(pipe._execution_device)


def latent_shape(pipe: Pipeline, size: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Shape of one candidate's latents as the loop carries them: (C, h, w), or (tokens, C) where they are packed.

    Args:
        size: (height, width) in pixels; the model's own when None.
    """
    family = any_family_of(pipe)
    shape = family.noise_shape(pipe, family.default_size(pipe) if size is None else as_size(size))
    return tuple(family.pack(pipe, torch.empty(1, *shape, device="meta")).shape[1:])
