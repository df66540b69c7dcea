"""Prices: the floating-point operations of a denoiser call, a decoding, a text encoding and a score.

They are what :class:`torch.utils.flop_counter.FlopCounterMode` counts (multiplications and
additions of matrix products, convolutions and attention), measured once for each shape on tensors without data.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffkit.conditioning import Embeds, denoiser_call
from diffkit.families import Autoencoder, Pipeline, Size, family_of, pipe_denoiser
from diffkit.families.base import size_of_latents
from diffkit.ledger import Prices

__all__ = ["count_flops", "pipeline_flops"]


_MEASURED: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], float | None]] = WeakKeyDictionary()


def count_flops(
    module: nn.Module,
    key: tuple[object, ...],
    call: Callable[[], object],
    on_trial: Callable[[], object] | None = None,
) -> float | None:
    """FLOP of ``call``, which must run ``module``; measured once for each ``key``.

    The call runs on fake tensors: shapes are computed, numbers are not. None where a module cannot be run so (for
    example one whose weights are streamed in by hooks).

    Args:
        on_trial: told before ``call`` runs for real, which it does, where this is given, for a module whose shapes
            depend on numbers (a mask that says how many tokens there are).
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

    known = _MEASURED.setdefault(module, {})
    if key not in known:
        try:
            with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            known[key] = float(counter.get_total_flops())
        except (DataDependentOutputException, DynamicOutputShapeException):
            if on_trial is None:
                return None
            on_trial()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                call()
            known[key] = float(counter.get_total_flops())
        except (RuntimeError, NotImplementedError, TypeError):
            known[key] = None
    return known[key]


def _twin(module: Any) -> Any:
    """While tensors are fake, a copy that shares the weights: what a module keeps for later calls must not be fake."""
    from torch._guards import active_fake_mode
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    if active_fake_mode() is None:
        return module
    with unset_fake_temporarily():
        return copy.deepcopy(module, {id(one): one for one in itertools.chain(module.parameters(), module.buffers())})


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
    on_trial: Callable[[], object] | None = None,
) -> Prices:
    """FLOP of a denoiser call, a decoding and a text encoding of this pipeline, and of the given verification.

    Args:
        latent_shape: of one candidate as the loop carries it, see :func:`diffkit.conditioning.latent_shape`.
        embeds: encoded prompts, for their shape and precision.
        guidance: whether a call carries two rows, together or one after the other.
        verify: FLOP of scoring one image, None when unknown.
        preview: the decoder of estimates, where it is not the pipeline's own.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.
        encode: FLOP of encoding one text where they were counted; else those of the one text encoder.
        on_trial: told when the denoiser must be called for real to count; without it its price is unknown then.
    """
    rows, family, denoiser = 2 if guidance else 1, family_of(pipe), pipe_denoiser(pipe)
    texts = embeds if isinstance(embeds, Embeds) else Embeds(embeds)
    length, width = texts.prompt_embeds.shape[1:]

    def call() -> Callable[[], object]:
        latents = torch.zeros(rows, *latent_shape, device=denoiser.device, dtype=denoiser.dtype)
        given = texts.rows([0] * rows).to(denoiser.device, denoiser.dtype)
        call = denoiser_call(pipe, latents, torch.tensor(1, device=denoiser.device), given, size=size)
        positional, named = family.inputs(pipe, call)

        def forward() -> object:
            module = _twin(denoiser)
            return type(module).forward(module, *positional, **named)

        return forward

    def decode(vae: Autoencoder) -> Callable[[], object]:
        latents = torch.zeros(1, *latent_shape, device=vae.device, dtype=vae.dtype)
        pixels = size_of_latents(pipe, family, latents) if size is None else Size(*size)
        unscaled = family.to_vae(pipe, latents, vae, pixels)
        return lambda: _twin(vae).decode(unscaled)

    def read() -> object:
        encoder = pipe.text_encoder
        return type(encoder).forward(encoder, torch.zeros(1, length, dtype=torch.long, device=encoder.device))

    def control() -> Callable[[], object]:
        latents = torch.zeros(rows, *latent_shape, device=denoiser.device, dtype=denoiser.dtype)
        given = texts.rows([0] * rows).to(denoiser.device, denoiser.dtype)
        call = denoiser_call(pipe, latents, torch.tensor(1, device=denoiser.device), given, size=size)
        positional, named = family.inputs(pipe, call)
        image = torch.zeros(rows, 3, *call.size, device=denoiser.device, dtype=denoiser.dtype)

        def forward() -> object:
            module = _twin(pipe.controlnet)
            many = len(module.nets) if hasattr(module, "nets") else 0
            images, scale = ([image] * many, [1.0] * many) if many else (image, 1.0)
            hints = {"controlnet_cond": images, "conditioning_scale": scale, "return_dict": False}
            return type(module).forward(module, *positional, **named, **hints)

        return forward

    shape = (*latent_shape, rows, length, width)
    called = count_flops(denoiser, shape, call(), on_trial)
    if family.control is not None:
        steered = count_flops(pipe.controlnet, shape, control())
        called = None if called is None or steered is None else called + steered
    return Prices(
        call=called,
        decode=count_flops(pipe.vae, shape, decode(pipe.vae)),
        verify=verify,
        encode=count_flops(pipe.text_encoder, shape, read) if encode is None else encode,
        preview=None if preview is None else count_flops(preview, shape, decode(preview)),
    )
