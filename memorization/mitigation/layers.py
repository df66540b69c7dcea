"""Layers of a pipeline by patterns of their names, and masks that switch off parts of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from diffkit.counting_copy import original_module
from diffkit.errors import InputError
from diffkit.families import family_of
from diffkit.mitigation.kinds import require_plain

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["Mask", "blocked", "feed_forward_layers", "matching", "size", "union", "value_layers"]

Mask = dict[str, Tensor]  # module, named from the pipeline -> bool, of its outputs (rows) or of its weights; True = off


def value_layers(pipe: Pipeline) -> tuple[str, ...]:
    """Patterns of the family's value projections of the text: NeMo's neurons.

    ``attn2.to_v`` of cross-attention (U-Nets, PixArt, Sana), ``add_v_proj`` of joint attention (SD3, FLUX.1, Chroma,
    Qwen-Image, the joint blocks of AuraFlow).

    Raises:
        InputError: text and image share their projections (Lumina 2, Z-Image), so that no layer is the text's alone.
    """
    part = family_of(pipe).denoiser
    names = [name for name, _ in original_module(getattr(pipe, part)).named_modules()]
    for ending in ("add_v_proj", "attn2.to_v"):  # attn2 of SD3.5 is the image's own, beside the joint attention
        if any(name.endswith(ending) for name in names):
            return (f"{part}.*{ending}",)
    raise InputError(
        f"{type(pipe).__name__} has no value projection of the text alone; name layers with --set layers=PATTERN."
    )


def feed_forward_layers(pipe: Pipeline) -> tuple[str, ...]:
    """Patterns of the family's second feed-forward linears: Wanda's weights.

    ``ff.net.2``, and where the text has a stream of its own ``ff_context.net.2`` (SD3, FLUX.1). FLUX.1's single blocks
    have one linear for attention and feed-forward together, which is left out.

    Raises:
        InputError: it has no such layers.
    """
    part = family_of(pipe).denoiser
    denoiser = original_module(getattr(pipe, part))
    linear = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)]
    endings = [ending for ending in ("ff.net.2", "ff_context.net.2") if any(n.endswith(f".{ending}") for n in linear)]
    if not endings:
        raise InputError(
            f"{type(pipe).__name__} has no feed-forward layers named ff.net.2; name some with --set layers=PATTERN."
        )
    return tuple(f"{part}.*.{ending}" for ending in endings)


def matching(pipe: Pipeline, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers whose names match any of the shell-style patterns, e.g. ``unet.*attn2.to_v``, in the model's order.

    Raises:
        InputError: a pattern matches none, or something that is not linear, is fused or has a LoRA adapter.
    """
    parts = {name: original_module(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    layers = {f"{part}.{name}": layer for part, root in parts.items() for name, layer in root.named_modules() if name}
    chosen = {}
    for pattern in patterns:
        names = [name for name in layers if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise InputError(f"No layer of this {type(pipe).__name__} matches {pattern!r}, e.g. unet.*attn2.to_v.")
        chosen.update(dict.fromkeys(names))
    linear = {name: layer for name, layer in layers.items() if name in chosen and isinstance(layer, nn.Linear)}
    require_plain(pipe, chosen)
    if other := [name for name in chosen if name not in linear]:
        raise InputError(f"The layer {other[0]!r} is a {type(layers[other[0]]).__name__}; expected linear layers.")
    return linear


@contextmanager
def blocked(layers: Mapping[str, nn.Module], rows: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the chosen outputs of layers by 0 inside the block; ``rows`` are bool (out,), True = off."""

    def hook(keep: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda _module, _inputs, output: output * keep.to(output)

    handles = [layers[name].register_forward_hook(hook(~mask)) for name, mask in rows.items() if mask.any()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def union(masks: Sequence[Mapping[str, Tensor]]) -> Mask:
    """The union of masks over the same layers."""
    total: Mask = {name: mask.clone() for name, mask in masks[0].items()}
    for mask in masks[1:]:
        for name in total:
            total[name] |= mask[name]
    return total


def size(mask: Mapping[str, Tensor]) -> int:
    """Number of outputs or weights that are off."""
    return sum(int(part.sum()) for part in mask.values())
