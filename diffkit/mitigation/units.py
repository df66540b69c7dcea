"""The parts of a denoiser that can be removed whole: attention heads, feed-forward channels, groups of a resnet.

A unit is a set of output rows of some layers, which nothing reads but the input columns of others. With its columns at
0 it gives nothing to the model, so that a mask of it and a model without it have the same outputs. Units are

- a head of an attention: its rows of the projections to queries, keys and values (of image and text in joint
  attention), its columns of the projections behind. Not where heads share keys (Lumina 2) or a norm goes over all heads
  (HiDream, Sana 1.5), because there one head bears on the others;
- an inner channel of a feed-forward: its rows of the projections before, both halves of a gated one, its column of the
  projection behind; Sana's are convolutions, FLUX's single blocks have theirs beside the heads;
- a group of channels of a resnet's second norm: its rows of the first convolution and of the timestep's projection, its
  weights in the norm, its columns of the second convolution. Whole groups, since a norm is over the channels of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

__all__ = ["Units", "removable_units"]

INPUTS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
OUTPUTS = ("to_out.0", "to_add_out")
#: Projections before and behind the inner channels of feed-forwards, and of gated ones with two layers before.
FEED_FORWARDS = (
    (("net.0.proj",), "net.2"),
    (("linear_in",), "linear_out"),
    (("w1", "w3"), "w2"),
    (("linear_1", "linear_3"), "linear_2"),
    (("linear_1", "linear_2"), "out_projection"),
    (("conv_inverted", "conv_depth"), "conv_point"),
)
HOOKS = {"_hf_hook", "_diffusers_hook"}  # attributes of layers that accelerate or diffusers offloads or casts


@dataclass(frozen=True, eq=False)
class Units:
    """The n units of one kind in a module; layers are named from the denoiser.

    Attributes:
        kind: what a unit is.
        number: n.
        rows: layer -> int64 (n, r), the output rows of each unit; also of group norms.
        columns: layer -> int64 (n, c), its input columns.
        attributes: module -> number that the module keeps -> what each unit adds to it.
    """

    kind: Literal["head", "channel", "group"]
    number: int
    rows: Mapping[str, Tensor]
    columns: Mapping[str, Tensor]
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def removable_units(denoiser: nn.Module) -> dict[str, Units]:
    """The units of a denoiser by module and kind, in the model's order; what is not known is left out.

    Layers that are no plain linear layers or convolutions (quantized, with an adapter, or with hooks that offload or
    cast them one by one) are left out with their module.

    Example:
        >>> from diffkit import load_pipeline
        >>> units = removable_units(load_pipeline("lab", device="cpu").unet)
        >>> units["mid_block.attentions.0.transformer_blocks.0.attn1.head"].number
        4
        >>> units["mid_block.resnets.0.group"].rows["mid_block.resnets.0.conv1"].shape
        torch.Size([16, 8])
    """
    finders = (_attention, _feed_forward, _resnet, _single_block, _fused_block)
    return {
        f"{name}.{units.kind}" if name else units.kind: units
        for name, module in denoiser.named_modules()
        for find in finders
        for units in find(f"{name}." if name else "", module)
    }


def spans(n: int, width: int, *starts: int) -> Tensor:
    """Indices (n, width * len(starts)): unit i has ``width`` of them from ``start + i * width``, for each start.

    Example:
        >>> spans(2, 2, 0, 10).tolist()
        [[0, 1, 10, 11], [2, 3, 12, 13]]
    """
    once = torch.arange(n * width).view(n, width)
    return torch.cat([once + start for start in starts], 1)


def _plain(module: nn.Module, paths: Sequence[str]) -> dict[str, Any]:
    """Those of the layers that are there and are plain linear layers or convolutions, offloaded and cast by nobody."""
    layers = {}
    for path in paths:
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            continue
        if type(layer) in (nn.Linear, nn.Conv2d) and not HOOKS & set(vars(layer)):
            layers[path] = layer
    return layers


def _alone(module: nn.Module, layers: Sequence[str], width: int) -> bool:
    """Whether all other parameters of the module have ``width`` values, such as the norms of one head."""
    others = (weight for name, weight in module.named_parameters() if name.rpartition(".")[0] not in layers)
    return all(weight.numel() == width for weight in others)


def _counters(module: nn.Module, head: int) -> dict[str, int]:
    values = {"heads": 1, "sliceable_head_dim": 1, "inner_dim": head, "inner_kv_dim": head}
    return {name: value for name, value in values.items() if isinstance(getattr(module, name, None), int)}


def _attention(prefix: str, module: nn.Module) -> Iterator[Units]:
    before, behind, n = _plain(module, INPUTS), _plain(module, OUTPUTS), getattr(module, "heads", None)
    if not isinstance(n, int) or "to_q" not in before or not behind or getattr(module, "fused_projections", False):
        return
    width = before["to_q"].out_features
    widths = {layer.out_features for layer in before.values()} | {layer.in_features for layer in behind.values()}
    if widths == {width} and width % n == 0 and _alone(module, [*before, *behind], width // n):
        index = spans(n, width // n, 0)
        yield Units(
            "head",
            n,
            {prefix + path: index for path in before},
            {prefix + path: index for path in behind},
            {prefix.rstrip("."): _counters(module, width // n)},
        )


def _feed_forward(prefix: str, module: nn.Module) -> Iterator[Units]:
    for inputs, output in FEED_FORWARDS:
        layers = _plain(module, (*inputs, output))
        if len(layers) <= len(inputs) or not _alone(module, list(layers), 0):
            continue
        n = layers[output].weight.shape[1]
        if all(len(layers[path].weight) in (n, 2 * n) for path in inputs):
            rows = {prefix + path: spans(n, 1, *range(0, len(layers[path].weight), n)) for path in inputs}
            yield Units("channel", n, rows, {prefix + output: spans(n, 1, 0)})


def _resnet(prefix: str, module: nn.Module) -> Iterator[Units]:
    layers = _plain(module, ("conv1", "time_emb_proj", "conv2"))
    norm = getattr(module, "norm2", None)
    if not isinstance(module, ResnetBlock2D) or type(norm) is not nn.GroupNorm or not {"conv1", "conv2"} <= set(layers):
        return
    if module.time_emb_proj is not None and "time_emb_proj" not in layers:
        return
    n, width = norm.num_groups, norm.num_channels // norm.num_groups
    rows = {f"{prefix}conv1": spans(n, width, 0), f"{prefix}norm2": spans(n, width, 0)}
    if "time_emb_proj" in layers:  # the shift of each channel, or its scale and shift
        starts = range(0, len(layers["time_emb_proj"].weight), norm.num_channels)
        rows[f"{prefix}time_emb_proj"] = spans(n, width, *starts)
    yield Units("group", n, rows, {f"{prefix}conv2": spans(n, width, 0)})


def _single_block(prefix: str, module: nn.Module) -> Iterator[Units]:
    """FLUX.1's and Chroma's: one projection behind the heads and the inner channels side by side."""
    layers = _plain(module, ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"))
    attention = getattr(module, "attn", None)
    if len(layers) < 5 or not isinstance(attention, nn.Module) or getattr(attention, "fused_projections", False):
        return
    inner, n = layers["attn.to_q"].out_features, int(getattr(attention, "heads", 1))
    channels, head = layers["proj_mlp"].out_features, inner // n
    if layers["proj_out"].in_features != inner + channels or not _alone(attention, INPUTS, head):
        return
    rows = {f"{prefix}attn.{name}": spans(n, head, 0) for name in ("to_q", "to_k", "to_v")}
    counters = {f"{prefix}attn": _counters(attention, head)}
    yield Units("head", n, rows, {f"{prefix}proj_out": spans(n, head, 0)}, counters)
    rows = {f"{prefix}proj_mlp": spans(channels, 1, 0)}
    yield Units("channel", channels, rows, {f"{prefix}proj_out": spans(channels, 1, inner)})


def _fused_block(prefix: str, module: nn.Module) -> Iterator[Units]:
    """FLUX.2's single blocks: one projection before and one behind heads and inner channels."""
    before, behind = "to_qkv_mlp_proj", "to_out"
    if len(_plain(module, (before, behind))) < 2 or not _alone(module, (before, behind), int(module.head_dim)):  # type: ignore[arg-type]
        return
    fused: Any = module
    n, head, inner, channels = fused.heads, fused.head_dim, fused.inner_dim, fused.mlp_hidden_dim
    rows = {prefix + before: spans(n, head, 0, inner, 2 * inner)}
    counters = {prefix.rstrip("."): _counters(module, head)}
    yield Units("head", n, rows, {prefix + behind: spans(n, head, 0)}, counters)
    rows = {prefix + before: spans(channels, 1, *(3 * inner + i * channels for i in range(fused.mlp_mult_factor)))}
    counters = {prefix.rstrip("."): {"mlp_hidden_dim": 1}}
    yield Units("channel", channels, rows, {prefix + behind: spans(channels, 1, inner)}, counters)
