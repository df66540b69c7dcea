"""What happens inside a denoiser: its predictions at a step, with and without the prompt, and layer activations."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffkit.conditioning import Conditioning, Embeds, predict_noise
from diffkit.errors import InputError
from diffkit.families import Pipeline
from diffkit.parameterization import StepCall, tweedie

__all__ = ["Activations", "Predictions", "activations", "predictions"]


@dataclass(frozen=True)
class Predictions:
    """The denoiser's two outputs for the same noisy latents, shaped as those, in the model's own parametrization.

    Attributes:
        conditional: with the prompt.
        unconditional: with the negative prompt, "" by default.
        x0: estimate of the clean latents from the conditional output, float32.
    """

    conditional: Tensor
    unconditional: Tensor
    x0: Tensor

    def text_magnitude(self) -> Tensor:
        """(B,) L2 norm of conditional minus unconditional, >= 0; higher = the text steers more (Wen et al. 2024)."""
        difference = self.conditional.float() - self.unconditional.float()
        magnitude: Tensor = torch.linalg.vector_norm(difference.flatten(1), dim=1)
        return magnitude


def predictions(
    pipe: Pipeline,
    latents: Tensor,
    timestep: Tensor,
    conditioning: Conditioning,
    *,
    size: tuple[int, int] | None = None,
) -> Predictions:
    """Both predictions in one call of the denoiser, rows [unconditional; conditional] as the pipeline stacks them.

    Differentiable in the embeddings and latents.

    Args:
        latents: (B, C, h, w) or packed, already scaled as the denoiser takes them (alpha-bar weighted, as DDIM's are).
        timestep: scalar tensor, in training timesteps.
        conditioning: B rows, with negatives.
        size: (height, width) in pixels of packed latents; the model's own size or a square when None.

    Raises:
        InputError: the conditioning has no negatives.
    """
    if conditioning.negative is None:
        raise InputError("The conditioning has no negatives; encode it with guidance=True.")
    embeds = Embeds.cat([conditioning.negative, conditioning.positive])
    both = predict_noise(pipe, torch.cat([latents] * 2), timestep, embeds, size=size)
    unconditional, conditional = both.chunk(2)
    x0 = tweedie(pipe.scheduler, StepCall(conditional, timestep, latents, ()))
    return Predictions(conditional, unconditional, x0)


Activations = dict[str, list[Tensor]]  # layer -> its output at each call, in order


@contextmanager
def activations(module: nn.Module, pattern: str, *, keep: int | None = None) -> Iterator[Activations]:
    """Record the outputs of every layer whose dotted name matches ``pattern`` while the block runs.

    Args:
        pattern: shell-style, e.g. ``*attn2.to_v``.
        keep: how many calls to keep of each layer, the latest ones; all by default. Memory grows with each call.

    Raises:
        InputError: no layer matches.

    Example:
        with activations(pipe.unet, "*attn2.to_v") as seen:
            pipe("a dog")
    """
    chosen = {name: layer for name, layer in module.named_modules() if name and fnmatch.fnmatchcase(name, pattern)}
    if not chosen:
        raise InputError(f"No layer of {type(module).__name__} matches {pattern!r}.")
    seen: Activations = {name: [] for name in chosen}

    def record(name: str, output: Tensor | tuple[Tensor, ...]) -> None:
        value = output[0] if isinstance(output, tuple) else output
        seen[name].append(value.detach())
        if keep is not None:
            del seen[name][:-keep]

    handles = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, layer in chosen.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
