"""Save a shrunk pipeline as an ordinary diffusers folder, where the denoiser's configuration can state its widths.

Most configurations cannot: the width of the attention is the number of heads times their size and also the model's own
width, and feed-forwards are a fixed multiple of it. Sana's states the inner channels and the heads of its
cross-attention, Lumina 2's and FLUX.2's the inner channels; one number for all blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit.counting_copy import original_module
from diffkit.errors import InputError
from diffkit.families import pipe_denoiser

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["STATED", "save_shrunk", "shrunk_config"]


def _ratio(channels: int, width: int) -> float:
    """A ratio whose product with the width is the number of channels after rounding down."""
    return channels / width if int(channels / width * width) == channels else math.nextafter(channels / width, math.inf)


def _sana(denoiser: Any) -> dict[str, object]:
    block = denoiser.transformer_blocks[0]
    ratio = _ratio(block.ff.conv_point.in_channels, block.ff.conv_point.out_channels)
    return {"mlp_ratio": ratio, "num_cross_attention_heads": block.attn2.heads}


def _lumina2(denoiser: Any) -> dict[str, object]:
    feed_forward = denoiser.layers[0].feed_forward.linear_2
    ratio = _ratio(feed_forward.in_features, 4 * feed_forward.out_features)
    return {"ffn_dim_multiplier": ratio, "multiple_of": 1}


def _flux2(denoiser: Any) -> dict[str, object]:
    feed_forward = denoiser.transformer_blocks[0].ff.linear_out
    return {"mlp_ratio": _ratio(feed_forward.in_features, feed_forward.out_features)}


#: Denoisers whose configuration states widths: how, and the patterns of the units that it states.
STATED: Mapping[str, tuple[Callable[[Any], dict[str, object]], str]] = {
    "SanaTransformer2DModel": (_sana, "*.ff.channel,*.attn2.head"),
    "Lumina2Transformer2DModel": (_lumina2, "*.channel"),
    "Flux2Transformer2DModel": (_flux2, "*.channel"),
}


def shrunk_config(denoiser: Any) -> dict[str, object]:
    """What the configuration of a shrunk denoiser states otherwise than that of the whole one.

    Raises:
        InputError: no configuration of this class gives layers of these shapes.
    """
    name = type(denoiser).__name__
    if name not in STATED:
        raise InputError(
            f"The configuration of {name} cannot state fewer heads, channels or groups than its width gives, so no "
            "folder holds the shrunk model; keep the mask, and shrink the pipeline after loading it."
        )
    config, patterns = STATED[name]
    changes = config(denoiser)
    whole = {key: value for key, value in denoiser.config.items() if key != "_use_default_values"}  # overrides changes
    with torch.device("meta"):
        twin = type(denoiser).from_config({**whole, **changes})
    shapes = {key: weight.shape for key, weight in denoiser.state_dict().items()}
    other = next((key for key, weight in twin.state_dict().items() if shapes.get(key) != weight.shape), None)
    if other is not None:
        raise InputError(
            f"The configuration of {name} states one width for all blocks, and the {other!r} of this shrunk model has "
            f"another; keep the mask, or prune with --set allocation=uniform --set layers='{patterns}'."
        )
    return changes


def save_shrunk(pipe: Pipeline, folder: str | Path) -> Path:
    """Write a pipeline whose denoiser was shrunk, as a folder that diffusers opens; returns the folder.

    Raises:
        InputError: the configuration cannot state the denoiser's widths.
    """
    denoiser = original_module(pipe_denoiser(pipe))
    changes, config = shrunk_config(denoiser), dict(denoiser.config)
    denoiser.register_to_config(**changes)
    try:
        pipe.save_pretrained(folder, safe_serialization=True)
    finally:
        denoiser.register_to_config(**{key: config[key] for key in changes})
    return Path(folder)
