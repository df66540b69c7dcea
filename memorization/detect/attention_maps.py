"""Cross-attention probabilities of a running pipeline, without touching its attention processors.

A hook in front of every cross-attention layer computes the probabilities from the layer's own query and key
projections, whatever kernel the layer itself uses. The generation is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import ScoringError
from diffkit.families import Pipeline

Reduce = Callable[[int, Tensor], Tensor | None]


def attention_probabilities(attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """(B, HW, L) float32 probabilities, mean over heads, of a diffusers ``Attention`` layer; rows sum to 1.

    Args:
        attention: the layer.
        hidden_states: (B, HW, C) what the layer is given; ``encoder_hidden_states``: (B, L, D) the text.
    """
    if attention.norm_cross:
        encoder_hidden_states = attention.norm_encoder_hidden_states(encoder_hidden_states)
    query = attention.head_to_batch_dim(attention.to_q(hidden_states)).float()
    key = attention.head_to_batch_dim(attention.to_k(encoder_hidden_states)).float()
    probabilities = (query @ key.transpose(1, 2) * attention.scale).softmax(-1)
    mean: Tensor = probabilities.unflatten(0, (len(hidden_states), attention.heads)).mean(1)
    return mean


def cross_attention_layers(denoiser: nn.Module) -> list[nn.Module]:
    """The denoiser's cross-attention layers.

    Raises:
        ScoringError: it has none.
    """
    layers = [layer for name, layer in denoiser.named_modules() if name.endswith("attn2")]
    if not layers:
        raise ScoringError(f"{type(denoiser).__name__} has no cross-attention layers (attn2)")
    return layers


@contextmanager
def record_attention(pipe: Pipeline, reduce: Reduce) -> Iterator[list[list[Tensor]]]:
    """Collect, for every denoiser call inside the ``with`` block, what ``reduce`` keeps of each layer.

    Under guidance only the conditional half is kept; the stock pipelines of the family put it second.

    Args:
        reduce: (index of the layer in the order of execution, (B, HW, L) probabilities) -> what to keep, or None.

    Yields:
        One list per denoiser call; in it one entry for each layer that was kept.
    """
    calls: list[list[Tensor]] = []
    count = [0]

    def begin(_module: nn.Module, _inputs: object) -> None:
        calls.append([])
        count[0] = 0

    @torch.no_grad()
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        text = inputs[1] if len(inputs) > 1 else named["encoder_hidden_states"]
        if pipe.do_classifier_free_guidance:
            hidden, text = hidden.chunk(2)[1], text.chunk(2)[1]
        kept = reduce(count[0], attention_probabilities(module, hidden, text))
        count[0] += 1
        if kept is not None:
            calls[-1].append(kept)

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in cross_attention_layers(pipe.unet)]
    handles.append(pipe.unet.register_forward_pre_hook(begin))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
