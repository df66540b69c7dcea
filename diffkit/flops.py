"""Prices: the floating-point operations of a denoiser call, a decoding, a text encoding and a score.

They are what :class:`torch.utils.flop_counter.FlopCounterMode` counts (multiplications and
additions of matrix products, convolutions and attention), measured once for each shape on tensors without data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffkit.conditioning import Embeds, denoiser_call
from diffkit.counting_copy import counting_copy, original_module
from diffkit.families import Autoencoder, Pipeline, any_family_of, as_size, pipe_denoiser
from diffkit.families.base import Decoding, size_of_latents
from diffkit.ledger import Prices
from diffkit.prepared_again import DenoiserCall

__all__ = ["count_flops", "pipeline_flops"]


_MEASURED: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], float | None]] = WeakKeyDictionary()
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
#: Arguments of a denoiser that hand over what a ControlNet adds to its layers.
_ADDED = ("additional_residuals", "additional_residual", "block_samples")
SMALL = 10_000_000  # weights; running a network of so few on a CPU takes less time than following its shapes


def count_flops(
    module: nn.Module,
    key: tuple[object, ...],
    call: Callable[[], object],
    on_trial: Callable[[], object] | None = None,
    *,
    on_copy: bool = False,
) -> float | None:
    """FLOP of ``call``, which must run ``module``; measured once for each ``key`` and each structure of the module.

    The call runs on fake tensors: shapes are computed, numbers are not; a small network on a CPU runs on numbers,
    which takes a fifth of the time. None where a module cannot be run so (for example one whose weights are streamed
    in by hooks).

    Args:
        key: everything that ``call`` hands to the module and that its FLOP depend on, such as shapes.
        on_trial: called before ``call`` runs on real numbers, which it does, where this is given, for a module whose
            shapes depend on numbers (a mask that says how many tokens there are).
        on_copy: ``call`` runs a copy of the module, so that hooks hear nothing of it and need not be spared.
    """
    module = original_module(module)
    measured = _MEASURED.setdefault(module, {})
    key = (*key, _structure(module))
    if key not in measured:
        measured[key] = _count_small(call) if _is_small(module, on_copy=on_copy) else None
        if measured[key] is None:
            measured[key] = _count_shapes(call, on_trial)
    return measured[key]


def _count(call: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return float(counter.get_total_flops())


def _count_small(call: Callable[[], object]) -> float | None:
    try:
        return _count(call)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError):  # a zero where it wants another
        return None


def _count_shapes(call: Callable[[], object], on_trial: Callable[[], object] | None) -> float | None:
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), _no_autocast_cache():
            return _count(call)
    except (DataDependentOutputException, DynamicOutputShapeException):
        if on_trial is None:
            return None
        on_trial()
        return _count(call)
    except (RuntimeError, NotImplementedError, TypeError):
        return None


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Weights that are cast meanwhile are not kept: the next call of the module would get them, without their data."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _is_small(module: nn.Module, *, on_copy: bool = False) -> bool:
    """Whether a network is cheap to run and does not change by it: few weights, on a CPU, none of its parts hooked."""
    weights = list(module.parameters())
    return (
        sum(weight.numel() for weight in weights) <= SMALL
        and all(weight.device.type == "cpu" for weight in weights)
        and not any(part.training or _is_hooked(part, on_copy=on_copy) for part in module.modules())
    )


def _is_hooked(part: nn.Module, *, on_copy: bool) -> bool:
    """Whether somebody hears of a call that only counts, which is none of their business; a copy has no hooks."""
    attributes = vars(part)
    if on_copy and ("_hf_hook" in attributes or "_diffusers_hook" in attributes):
        return False
    listened = not on_copy and bool(part._forward_hooks or part._forward_pre_hooks)
    return listened or "forward" in attributes


def _structure(module: nn.Module) -> int:
    """Hash of what a module's FLOP depend on beside its inputs: its submodules, their settings and tensors' shapes.

    It changes when an adapter is loaded, fused, switched off or deleted, and with the precision and the device.
    """
    return hash(
        tuple(
            (name, type(part).__qualname__, *map(_tensor, _tensors(part)), *_settings(part))
            for name, part in module.named_modules()
        )
    )


def _tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tensors in (part._parameters, part._buffers):
        yield from ((name, value) for name, value in tensors.items() if value is not None)


def _tensor(item: tuple[str, Tensor]) -> tuple[object, ...]:
    name, value = item
    return name, tuple(value.shape), value.dtype, value.device.type


def _settings(part: nn.Module) -> Iterator[tuple[str, object]]:
    """The attributes of a module's own by their values where these are plain, else by their types."""
    return ((name, _plain(value)) for name, value in vars(part).items() if name not in _OF_EVERY_MODULE)


def _plain(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):  # a union takes twice as long
        return value
    if isinstance(value, Mapping):
        return tuple((str(name), _plain(inner)) for name, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_plain, sorted(value, key=str) if isinstance(value, set | frozenset) else value))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _twin(module: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Any:
    """What is called to count: a copy, or the module itself where it must run on numbers and is not small."""
    from torch._guards import active_fake_mode

    if active_fake_mode() is None and not _is_small(module, on_copy=True):
        return module
    return counting_copy(module, device, dtype)


def pipeline_flops(
    pipe: Pipeline,
    latent_shape: tuple[int, ...],
    embeds: Embeds | Tensor,
    *,
    guidance: bool,
    verify: float | None,
    preview: Autoencoder | None = None,
    size: tuple[int, int] | None = None,
    encode: float | None = None,
    images: Sequence[Tensor] = (),
    calls: Sequence[DenoiserCall] = (),
    on_trial: Callable[[], object] | None = None,
) -> Prices:
    """FLOP of a denoiser call, a decoding and a text encoding of this pipeline, and of the given verification.

    Args:
        latent_shape: of one candidate as the loop carries it, see :func:`diffkit.conditioning.latent_shape`.
        embeds: encoded prompts; the first one's shape and precision count.
        guidance: whether a call carries two rows, together or one after the other.
        verify: FLOP of scoring one image, None when unknown.
        preview: the decoder of estimates, where it is not the pipeline's own.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.
        encode: FLOP of encoding one text where they were counted; else those of the one text encoder.
        images: encoded image prompts of one candidate, one tensor for each IP-Adapter.
        calls: those of one step, as :func:`diffkit.recorded_calls.first_step_calls` gives them, where the family alone
            does not say what its denoiser gets.
        on_trial: called when the denoiser must run on real numbers to be counted; without it its price is unknown then.
    """
    rows = [0] * (2 if guidance else 1)
    texts = (embeds if isinstance(embeds, Embeds) else Embeds(embeds)).rows(rows)
    return Prices(
        call=_flops_of_calls(pipe, calls, on_trial)
        if calls
        else _call_flops(pipe, latent_shape, texts, size, images, on_trial),
        decode=_decode_flops(pipe, pipe.vae, latent_shape, size, texts.prompt_embeds.dtype),
        verify=verify,
        encode=_encode_flops(pipe.text_encoder, texts.prompt_embeds.shape[1]) if encode is None else encode,
        preview=None if preview is None else _decode_flops(pipe, preview, latent_shape, size, preview.dtype),
    )


def _call_flops(
    pipe: Pipeline,
    latent_shape: tuple[int, ...],
    texts: Embeds,
    size: tuple[int, int] | None,
    images: Sequence[Tensor],
    on_trial: Callable[[], object] | None,
) -> float | None:
    """FLOP of one call of the denoiser for the rows of ``texts``, its ControlNet's included."""
    family, denoiser = any_family_of(pipe), original_module(pipe_denoiser(pipe))
    texts = texts.to(denoiser.device, denoiser.dtype)
    latents = torch.zeros(len(texts), *latent_shape, device=denoiser.device, dtype=denoiser.dtype)
    call = denoiser_call(pipe, latents, torch.tensor(1, device=denoiser.device), texts, size=size)
    positional, named = family.inputs(pipe, call)
    shapes = [tuple(value.shape) for value in (latents, texts.prompt_embeds, *texts.companions.values(), *images)]
    seen = _with_images(named, [image.to(denoiser.device, denoiser.dtype) for image in images])
    key = ("call", *call.size, *shapes)

    def forward() -> object:
        module = _twin(denoiser, denoiser.device, denoiser.dtype)
        return type(module).forward(module, *positional, **seen)

    def control() -> object:
        module = _twin(original_module(pipe.controlnet), denoiser.device, denoiser.dtype)
        image = torch.zeros(len(texts), 3, *call.size, device=denoiser.device, dtype=denoiser.dtype)
        many = len(module.nets) if hasattr(module, "nets") else 0
        images, scale = ([image] * many, [1.0] * many) if many else (image, 1.0)
        hints = {"controlnet_cond": images, "conditioning_scale": scale, "return_dict": False}
        return type(module).forward(module, *positional, **named, **hints)

    flops = [count_flops(denoiser, key, forward, on_trial, on_copy=True)]
    if family.control is not None:
        flops.append(count_flops(pipe.controlnet, key, control, on_copy=True))
    return None if None in flops else sum(value for value in flops if value is not None)


def _flops_of_calls(
    pipe: Pipeline, calls: Sequence[DenoiserCall], on_trial: Callable[[], object] | None
) -> float | None:
    """FLOP of calls of the denoiser and its ControlNet, whose additions to the denoiser's layers cost nothing."""
    denoiser, flops = original_module(pipe_denoiser(pipe)), []
    for call in calls:
        module = original_module(getattr(pipe, call.name))
        named = {name: None if name.endswith(_ADDED) else value for name, value in call.named.items()}

        def forward(module: Any = module, call: DenoiserCall = call, named: Mapping[str, object] = named) -> object:
            twin = _twin(module, denoiser.device, denoiser.dtype)
            return type(twin).forward(twin, *call.positional, **named)

        key = ("call", call.name, _shapes(call.positional), _shapes(named))
        flops.append(count_flops(module, key, forward, on_trial))
    return None if None in flops else sum(value for value in flops if value is not None)


def _shapes(value: object) -> object:
    """What the FLOP of a call depend on of its arguments: shapes, and plain values."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((str(name), _shapes(inner)) for name, inner in value.items())
    return tuple(map(_shapes, value)) if isinstance(value, list | tuple) else _plain(value)


def _with_images(named: Mapping[str, object], images: Sequence[Tensor]) -> Mapping[str, object]:
    """The denoiser's keyword arguments with image prompts."""
    added = named.get("added_cond_kwargs")
    told = {**(added if isinstance(added, dict) else {}), "image_embeds": images}
    return {**named, "added_cond_kwargs": told} if images else named


def _decode_flops(
    pipe: Pipeline, vae: Autoencoder, latent_shape: tuple[int, ...], size: tuple[int, int] | None, dtype: torch.dtype
) -> float | None:
    """FLOP of decoding one candidate's latents, where the prompts are encoded in ``dtype``."""
    family = any_family_of(pipe)
    latents = torch.zeros(1, *latent_shape, device=vae.device, dtype=vae.dtype)
    pixels = size_of_latents(pipe, family, latents) if size is None else as_size(size)
    if family.decode is not None:
        how, own = Decoding(pixels, None, {}, dtype), family.decode
        frames = getattr(pixels, "frames", 1)

        def decode_video() -> object:
            return own(pipe, latents, _twin(original_module(vae), vae.device, vae.dtype), how)

        return count_flops(vae, ("decode", frames, *latents.shape), decode_video)
    unscaled = family.to_vae(pipe, latents, vae, pixels)

    def decode() -> object:
        module = _twin(original_module(vae), vae.device, vae.dtype)
        return type(module).decode(module, unscaled)

    return count_flops(vae, ("decode", *unscaled.shape), decode, on_copy=True)


def _encode_flops(encoder: Any, length: int) -> float | None:
    """FLOP of encoding one text of ``length`` tokens."""

    def read() -> object:
        return type(encoder).forward(encoder, torch.zeros(1, length, dtype=torch.long, device=encoder.device))

    return count_flops(encoder, ("encode", length), read)
