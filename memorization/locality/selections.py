"""Which weights a pruning method would select for an embedding: NeMo's neurons, Wanda's weights.

One setting for all embeddings. NeMo's own search lowers its threshold until a memory breaks and then drops what it can,
so that its sets differ in size for reasons of their own; "Finding Dori" compares those. Here the first selection at one
``theta`` is compared, which needs no generation and can be set against chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from diffkit.conditioning import encode_prompts
from memorization.locality.settings import LocalitySettings
from memorization.mitigate import nemo, wanda
from memorization.mitigate.layers import Mask, matching

if TYPE_CHECKING:
    from diffkit.families import Pipeline

Selector = Callable[[Tensor], list[Mask]]  # (n, L, D) embeddings -> n selections


def selector(pipe: Pipeline, method: str, ordinary: Sequence[str], settings: LocalitySettings) -> Selector:
    """What a method would select, as a function of embeddings.

    Args:
        pipe: a pipeline of the Stable Diffusion 1/2 family.
        method: "nemo" or "wanda".
        ordinary: captions of nothing memorized, whose activations are the comparison of both methods.
        settings: of the study.
    """
    return _nemo(pipe, ordinary, settings) if method == "nemo" else _wanda(pipe, ordinary, settings)


def _nemo(pipe: Pipeline, ordinary: Sequence[str], settings: LocalitySettings) -> Selector:
    layers = matching(pipe, ("unet.*attn2.to_v",))
    known = nemo.statistics(pipe, layers, ordinary)

    def choose(embeds: Tensor) -> list[Mask]:
        values = nemo.activations(layers, embeds.to(pipe.device))
        rows = [{name: value[i] for name, value in values.items()} for i in range(len(embeds))]
        return [nemo.select(row, known, theta=settings.theta) for row in rows]

    return choose


def _wanda(pipe: Pipeline, ordinary: Sequence[str], settings: LocalitySettings, base_captions: int = 32) -> Selector:
    layers = matching(pipe, ("unet.*ff.net.2",))
    weights = {name: layer.weight for name, layer in layers.items()}

    def norms(embeds: Tensor) -> wanda.Norms:
        return wanda.input_norms(
            pipe,
            layers,
            embeds.to(pipe.device, pipe.dtype),
            steps=settings.num_inference_steps,
            guidance=settings.guidance_scale,
            timesteps=min(10, settings.num_inference_steps),
            micro_batch=settings.micro_batch,
        )

    base = wanda.root_mean_square(
        norms(encode_prompts(pipe, list(ordinary)[:base_captions], guidance=False).prompt_embeds)
    )

    def choose(embeds: Tensor) -> list[Mask]:
        found = norms(embeds)
        rows = [{name: value[i] for name, value in found.items()} for i in range(len(embeds))]
        return [wanda.select(weights, row, base, sparsity=settings.sparsity) for row in rows]

    return choose
