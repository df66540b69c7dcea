"""Attention of image over text in a running pipeline, without changing its attention processors.

A hook in front of every cross-attention or joint-attention layer computes the probabilities from the layer's own query
and key projections, whatever kernel the layer itself uses. The generation is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from diffkit.errors import ScoringError
from diffkit.families import Pipeline, pipe_denoiser

Reduce = Callable[[int, Tensor], Tensor | None]


def attention_probabilities(attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
    """(B, HW, L) float32 probabilities, mean over heads, of a diffusers ``Attention`` layer; rows sum to 1.

    Args:
        attention: the layer.
        hidden_states: (B, HW, C) input of the layer; ``encoder_hidden_states``: (B, L, D) the text.
    """
    if attention.norm_cross:
        encoder_hidden_states = attention.norm_encoder_hidden_states(encoder_hidden_states)
    query = attention.head_to_batch_dim(attention.to_q(hidden_states)).float()
    key = attention.head_to_batch_dim(attention.to_k(encoder_hidden_states)).float()
    probabilities = (query @ key.transpose(1, 2) * attention.scale).softmax(-1)
    mean: Tensor = probabilities.unflatten(0, (len(hidden_states), attention.heads)).mean(1)
    return mean


def joint_probabilities(
    attention: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, rotary: tuple[Tensor, Tensor] | None
) -> Tensor:
    """(B, HW, L) float32 probabilities of image queries over text keys, mean over heads; rows sum to 1.

    Joint attention (SD3, FLUX.1) has image and text keys in one softmax; a softmax over the text keys alone is that
    distribution, conditional on attention to the text.

    Args:
        attention: the layer.
        hidden_states: (B, HW, C) of the image; ``encoder_hidden_states``: (B, L, C) of the text.
        rotary: cosines and sines of all positions, the text's first; None without rotary embeddings.
    """
    text = encoder_hidden_states.shape[1]
    query = attention.to_q(hidden_states).unflatten(-1, (attention.heads, -1))
    key = attention.add_k_proj(encoder_hidden_states).unflatten(-1, (attention.heads, -1))
    query = query if getattr(attention, "norm_q", None) is None else attention.norm_q(query)
    key = key if getattr(attention, "norm_added_k", None) is None else attention.norm_added_k(key)
    if rotary is not None:
        cosines, sines = rotary
        query = apply_rotary_emb(query, (cosines[text:], sines[text:]), sequence_dim=1)
        key = apply_rotary_emb(key, (cosines[:text], sines[:text]), sequence_dim=1)
    logits = torch.einsum("bqhd,bkhd->bhqk", query.float(), key.float()) / query.shape[-1] ** 0.5
    probabilities: Tensor = logits.softmax(-1).mean(1)
    return probabilities


def text_attention_layers(denoiser: nn.Module) -> list[nn.Module]:
    """The layers with attention of the image over the text: cross-attention, else joint attention.

    Raises:
        ScoringError: it has neither.
    """
    named = list(denoiser.named_modules())
    joint = [layer for _, layer in named if getattr(layer, "add_k_proj", None) is not None and hasattr(layer, "to_q")]
    layers = joint or [layer for name, layer in named if name.endswith("attn2")]
    if not layers:
        raise ScoringError(f"{type(denoiser).__name__} has no attention over the text (attn2, add_k_proj)")
    return layers


@contextmanager
def record_attention(pipe: Pipeline, reduce: Reduce) -> Iterator[list[list[Tensor]]]:
    """Collect, for every denoiser call inside the ``with`` block, the output of ``reduce`` for each layer.

    Under guidance only the conditional half is kept; the stock pipelines put it second.

    Args:
        reduce: (index of the layer in the order of execution, (B, HW, L) probabilities) -> tensor to keep, or None.

    Yields:
        One list per denoiser call; in it one entry for each layer that was kept.
    """
    calls: list[list[Tensor]] = []
    count = [0]
    denoiser = pipe_denoiser(pipe)

    def begin(_module: nn.Module, _inputs: object) -> None:
        calls.append([])
        count[0] = 0

    @torch.no_grad()
    def keep(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        text = inputs[1] if len(inputs) > 1 else named["encoder_hidden_states"]
        if getattr(pipe, "do_classifier_free_guidance", False):
            hidden, text = hidden.chunk(2)[1], text.chunk(2)[1]
        if getattr(module, "add_k_proj", None) is not None:
            probabilities = joint_probabilities(module, hidden, text, named.get("image_rotary_emb"))
        else:
            probabilities = attention_probabilities(module, hidden, text)
        kept = reduce(count[0], probabilities)
        count[0] += 1
        if kept is not None:
            calls[-1].append(kept)

    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in text_attention_layers(denoiser)]
    handles.append(denoiser.register_forward_pre_hook(begin))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
