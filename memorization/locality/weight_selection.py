"""The weights that a pruning method selects for an embedding: NeMo's neurons, Wanda's weights.

One setting for all embeddings. NeMo's own search lowers its threshold until the image is no longer reproduced and then
drops unneeded neurons, so that the sizes of its sets depend on the search; "Finding Dori" compares those. Here the
first selection at one ``theta`` is compared, which needs no generation and has an expectation by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diffkit.prompt_embeds import Embeds
from memorization.locality.settings import LocalitySettings
from memorization.mitigation import nemo, wanda
from memorization.mitigation.layers import Mask, feed_forward_layers, matching, value_layers
from memorization.text_embeddings import encoded

if TYPE_CHECKING:
    from diffkit.families import Pipeline

Selector = Callable[[Embeds], list[Mask]]  # n rows of embeddings -> n selections


def selector(pipe: Pipeline, method: str, ordinary: Sequence[str], settings: LocalitySettings) -> Selector:
    """A method's selection as a function of embeddings.

    Args:
        pipe: a pipeline of a known family.
        method: "nemo" or "wanda".
        ordinary: captions of nothing memorized, whose activations are the comparison of both methods.
        settings: of the study.
    """
    return _nemo(pipe, ordinary, settings) if method == "nemo" else _wanda(pipe, ordinary, settings)


def _nemo(pipe: Pipeline, ordinary: Sequence[str], settings: LocalitySettings) -> Selector:
    layers = matching(pipe, value_layers(pipe))
    ordinary_statistics = nemo.statistics(pipe, layers, ordinary)

    def choose(embeds: Embeds) -> list[Mask]:
        values = nemo.activations(pipe, layers, embeds.to(pipe.device))
        rows = [{name: value[i] for name, value in values.items()} for i in range(len(embeds))]
        return [nemo.select(row, ordinary_statistics, theta=settings.theta) for row in rows]

    return choose


def _wanda(pipe: Pipeline, ordinary: Sequence[str], settings: LocalitySettings, base_captions: int = 32) -> Selector:
    layers = matching(pipe, feed_forward_layers(pipe))
    weights = {name: layer.weight for name, layer in layers.items()}

    def norms(embeds: Embeds) -> wanda.Norms:
        return wanda.input_norms(
            pipe,
            layers,
            embeds.to(pipe.device, pipe.dtype),
            steps=settings.num_inference_steps,
            guidance=settings.guidance_scale,
            timesteps=min(10, settings.num_inference_steps),
            micro_batch=settings.micro_batch,
        )

    base = wanda.root_mean_square(norms(encoded(pipe, list(ordinary)[:base_captions])))

    def choose(embeds: Embeds) -> list[Mask]:
        by_layer = norms(embeds)
        rows = [{name: value[i] for name, value in by_layer.items()} for i in range(len(embeds))]
        return [wanda.select(weights, row, base, sparsity=settings.sparsity) for row in rows]

    return choose
