"""Wanda: a weight matters as much as its absolute value times the size of its input on ordinary data.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023 (arXiv 2306.11695), equation 1:
``S = |W_ij| * ||x_j||_2`` over all tokens of the calibration data, here divided by the root of their number. Other than
:mod:`memorization.mitigation.wanda`, which removes the weights that score highest under a memorized caption, this keeps
the weights that score highest on ordinary images. Where we differ from the authors: weights are compared within a layer
and not within an output row, as all saliencies here; the norm is per token, which changes nothing within a layer, so
that one threshold over several layers does not remove those that see few tokens, such as the projection of the
timestep; and convolutions are taken as linear layers on unfolded patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from memorization.mitigation.pruning.layers import Layer
from memorization.mitigation.wanda import on_inputs, scores

__all__ = ["input_norms", "saliency"]


@torch.no_grad()
def input_norms(layers: Mapping[str, Layer], forward: Callable[[], object]) -> dict[str, Tensor]:
    """Root mean square over tokens of each input column of the layers, of all that ``forward`` sends through them.

    Returns:
        Layer -> float32 (groups, columns), where a convolution of g groups has in / g * height * width columns a group;
        0 for a layer that does not run.
    """
    squares = {name: torch.zeros(_columns(layer), device=layer.weight.device) for name, layer in layers.items()}
    tokens = dict.fromkeys(layers, 0)

    def add(name: str, inputs: Tensor) -> None:
        rows = columns(layers[name], inputs.float())
        squares[name] += rows.square().sum(0)
        tokens[name] += len(rows)

    with on_inputs(layers, add):
        forward()
    return {name: (value / max(1, tokens[name])).sqrt() for name, value in squares.items()}


def _columns(layer: Layer) -> tuple[int, int]:
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    return groups, layer.weight[0].numel()


def columns(layer: Layer, inputs: Tensor) -> Tensor:
    """(tokens, groups, columns) of the inputs, (..., in), or (B, C, h, w) with a token for each output position."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, 1, inputs.shape[-1])
    padding: tuple[int, int] = layer.padding  # type: ignore[assignment]  # no "same" in any denoiser
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    patches = nn.functional.unfold(inputs, kernel, dilation=dilation, padding=padding, stride=stride)
    return patches.transpose(1, 2).reshape(-1, *_columns(layer))


def saliency(weight: Tensor, norms: Tensor) -> Tensor:
    """``|W| * ||x|| / sqrt(tokens)``, float32, shaped as the weight (out, in, ...); >= 0, higher = keep.

    Args:
        weight: (out, in), or (out, in / groups, height, width).
        norms: (groups, columns), see :func:`input_norms`.

    Example:
        >>> saliency(torch.tensor([[1.0, -2.0]]), torch.tensor([[4.0, 3.0]])).tolist()
        [[4.0, 6.0]]
    """
    return scores(weight.flatten(1).unflatten(0, (len(norms), -1)), norms).view(weight.shape)
