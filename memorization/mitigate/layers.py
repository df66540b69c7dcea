"""Layers of a pipeline by the pattern of their names, counted from the pipeline, and switching parts of them off."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from diffkit.errors import InputError

if TYPE_CHECKING:
    from diffkit.families import Pipeline

__all__ = ["Mask", "blocked", "matching", "size", "union"]

Mask = dict[str, Tensor]  # module, named from the pipeline -> bool, of its outputs (rows) or of its weights; True = off


def matching(pipe: Pipeline, patterns: Sequence[str]) -> dict[str, nn.Linear]:
    """Linear layers whose names match any of the shell-style patterns, e.g. ``unet.*attn2.to_v``, in the model's order.

    Raises:
        InputError: a pattern matches none, or something that is not linear.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    known = {f"{part}.{name}": layer for part, root in parts.items() for name, layer in root.named_modules() if name}
    found = {}
    for pattern in patterns:
        names = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            raise InputError(f"No layer of this {type(pipe).__name__} matches {pattern!r}, e.g. unet.*attn2.to_v.")
        found.update(dict.fromkeys(names))
    linear = {name: layer for name, layer in known.items() if name in found and isinstance(layer, nn.Linear)}
    if other := [name for name in found if name not in linear]:
        raise InputError(f"The layer {other[0]!r} is a {type(known[other[0]]).__name__}; expected linear layers.")
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
    """What any of the masks switches off. All have the same layers."""
    total: Mask = {name: mask.clone() for name, mask in masks[0].items()}
    for mask in masks[1:]:
        for name in total:
            total[name] |= mask[name]
    return total


def size(mask: Mapping[str, Tensor]) -> int:
    """How many outputs or weights are off."""
    return sum(int(part.sum()) for part in mask.values())
