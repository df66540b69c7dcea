"""Gradient checkpointing of a denoiser: its blocks' activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["gradient_checkpointing"]

#: Denoisers whose checkpointed blocks do not get the attention mask in diffusers 0.42: another prediction.
MASKLESS = ("ChromaTransformer2DModel",)


@contextmanager
def gradient_checkpointing(denoiser: nn.Module, *, on_cpu: bool = False) -> Iterator[None]:
    """Switch gradient checkpointing on inside the ``with`` block: the same gradients in less memory.

    ``docs/families.md`` has what it costs and saves at real sizes. Nothing is changed on the CPU, where memory is
    rarely what is short; nor where the denoiser has none, is compiled, or has it switched on already.

    Args:
        denoiser: a model of diffusers.
        on_cpu: also on the CPU.

    Example:
        >>> from diffkit import load_pipeline
        >>> denoiser = load_pipeline("lab").unet
        >>> with gradient_checkpointing(denoiser, on_cpu=True):
        ...     print(denoiser.is_gradient_checkpointing)
        True
        >>> denoiser.is_gradient_checkpointing
        False
    """
    from diffusers import ModelMixin

    if (
        not isinstance(denoiser, ModelMixin)
        or not denoiser._supports_gradient_checkpointing
        or type(denoiser).__name__ in MASKLESS
        or denoiser.is_gradient_checkpointing
        or (denoiser.device.type == "cpu" and not on_cpu)
    ):
        yield
        return
    denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.disable_gradient_checkpointing()
